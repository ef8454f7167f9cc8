"""Every form of attention against the definition, written out in NumPy at float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.kernels.attention import attention as door
from gemma_train.kernels.attention import blocked
from gemma_train.kernels.attention.attention import attention
from gemma_train.kernels.attention.mask import AttentionMask
from tests.tolerances import assert_close

HEAD = 4


def sees(query: tuple[int, int, int], key: tuple[int, int, int], window: int | None) -> bool:
    """The rule, of (position, segment, image): same document, and not later and within the window
    or of one image."""
    (query_position, query_segment, query_image), (key_position, key_segment, key_image) = (
        query,
        key,
    )
    distance = query_position - key_position
    near = 0 <= distance < (window or np.inf)
    return query_segment == key_segment and (near or query_image == key_image >= 0)


def definition(query, key, value, cotangent, positions, segments, images, window, soft_cap):
    """(output, gradients of sum(output * cotangent) in query, key, value), pair by pair."""
    query, key, value, cotangent = (np.float64(x) for x in (query, key, value, cotangent))
    output, d_query, d_key, d_value = (np.zeros_like(x) for x in (query, query, key, value))
    batch, length, heads = query.shape[:3]
    group = heads // key.shape[2]
    for b in range(batch):
        places = list(zip(positions[b], segments[b], images[b], strict=True))
        for t in range(length):
            seen = [s for s in range(length) if sees(places[t], places[s], window)]
            for n in range(heads):
                keys, values = key[b, seen, n // group], value[b, seen, n // group]
                scores, slope = keys @ query[b, t, n], 1.0
                if soft_cap is not None:
                    slope = 1 - np.tanh(scores / soft_cap) ** 2
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                output[b, t, n] = weights @ values
                d_weights = values @ cotangent[b, t, n]
                d_scores = weights * (d_weights - weights @ d_weights) * slope
                d_query[b, t, n] = d_scores @ keys
                d_key[b, seen, n // group] += np.outer(d_scores, query[b, t, n])
                d_value[b, seen, n // group] += np.outer(weights, cotangent[b, t, n])
    return output, (d_query, d_key, d_value)


class Sample:
    """Random queries, keys and values of packed rows, and what the definition says of them."""

    def __init__(self, places, heads, key_heads, window, soft_cap, dtype=jnp.float32, sharpness=1):
        random = np.random.default_rng(1)
        self.positions, self.segments = places[:2]
        self.images, self.image_tokens = places[2:] if len(places) > 2 else (None, 0)
        self.window, self.soft_cap = window, soft_cap

        def draw(heads: int, scale: float = 1.0) -> np.ndarray:
            made = random.normal(size=(*self.positions.shape, heads, HEAD)) * scale
            return np.asarray(jnp.asarray(made, dtype))

        # Scores of a few units, times the sharpness: a softmax neither flat nor a maximum.
        self.arrays = (draw(heads, sharpness), draw(key_heads), draw(key_heads))
        # Padding carries no loss: what it gives, none may care for.
        real = (self.segments > 0)[..., None, None]
        self.real = real
        self.cotangent = draw(heads) * real.astype(dtype)

    @property
    def rule(self):
        images = np.full_like(self.segments, -1) if self.images is None else self.images
        return self.positions, self.segments, images, self.window, self.soft_cap

    def expected(self):
        output, gradients = definition(*self.arrays, self.cotangent, *self.rule)
        return (output * self.real, *gradients)

    def program(self, implementation):
        """The jitted (output, gradients in query, key and value), and its arguments."""

        def run(query, key, value, cotangent, positions, segments, images):
            def form(query, key, value):
                rule = (positions, segments, self.window, images, self.image_tokens)
                mask = AttentionMask.of_itself(*rule)
                return attention(
                    query, key, value, mask, soft_cap=self.soft_cap, implementation=implementation
                )

            output, pull = jax.vjp(form, query, key, value)
            return (output, *pull(cotangent))

        mesh = jax.sharding.get_mesh()
        arguments = (*self.arrays, self.cotangent, self.positions, self.segments, self.images)
        placed = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, activation("btnh"[: x.ndim]))),
            arguments,
        )
        return jax.jit(run), placed

    def check(self, implementation, tolerance="fp32"):
        program, arguments = self.program(implementation)
        output, *gradients = program(*arguments)
        assert np.isfinite(np.asarray(output, np.float32)).all()
        found = (np.asarray(output, np.float32) * self.real, *gradients)
        for name, one, other in zip(
            ["output", "query", "key", "value"], found, self.expected(), strict=True
        ):
            assert_close(one, other, tolerance, name)


def test_the_definition_s_gradients_are_those_of_its_output(packed):
    sample = Sample(packed(1, 6, padding=1), 2, 1, window=3, soft_cap=2.0)
    random = np.random.default_rng(0)
    directions = [random.normal(size=x.shape) for x in sample.arrays]

    def value(step: float) -> float:
        moved = [x + step * d for x, d in zip(sample.arrays, directions, strict=True)]
        output, _ = definition(*moved, sample.cotangent, *sample.rule)
        return np.sum(output * sample.cotangent)

    slope = sum(np.sum(g * d) for g, d in zip(sample.expected()[1:], directions, strict=True))
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-6)


# name: (length, query heads, key heads, window, soft cap, mean document, padded tokens)
CASES = {
    "a window of 1, every head its own key head": (9, 2, 2, 1, None, 5, 0),
    "a window of 3 that does not divide the row, one key head": (13, 4, 1, 3, None, 9, 0),
    "a row of one block": (8, 4, 2, 8, None, 50, 0),
    "a row of two blocks and many documents": (16, 4, 2, 8, None, 4, 0),
    "a window longer than the row": (7, 4, 2, 40, None, 50, 0),
    "a soft cap under a window": (11, 4, 2, 4, 1.5, 9, 0),
    "padding under a window": (14, 4, 2, 4, None, 6, 5),
}
GLOBAL_CASES = {
    "one long document": (9, 2, 2, None, None, 50, 0),
    "many documents, a soft cap, padding": (13, 4, 2, None, 1.5, 4, 5),
}
FORMS = [(form, case) for form in ("reference", "blocked") for case in CASES]
FORMS += [(form, case) for form in ("reference", "blocked") for case in GLOBAL_CASES]


@pytest.mark.parametrize(("form", "case"), FORMS)
def test_it_equals_the_definition_with_its_gradients(form, case, mesh_of, packed):
    length, heads, key_heads, window, soft_cap, mean, padding = {**CASES, **GLOBAL_CASES}[case]
    places = packed(2, length, seed=length, mean=mean, padding=padding)
    with mesh_of():
        Sample(places, heads, key_heads, window, soft_cap).check(form)


def with_images(places, size: int):
    """Places with images of `size` soft tokens, one beside the other and some between text."""
    positions, segments = places
    images, random = np.full_like(segments, -1), np.random.default_rng(size)
    for row, segment in zip(images, segments, strict=True):
        place, number = 0, 0
        while place + size <= len(row):
            here = segment[place : place + size]
            if here[0] > 0 and (here == here[0]).all() and random.random() < 0.6:
                row[place : place + size] = number
                place, number = place + size, number + 1
            else:
                place += 1
    assert (images >= 0).any()
    return positions, segments, images, size


# (form, mesh, length, window, soft tokens of an image, mean document, padded tokens)
IMAGES = [
    ("reference", (1, 1, 1), 13, None, 5, 50, 0),
    ("reference", (1, 1, 1), 13, 4, 4, 9, 2),
    ("blocked", (1, 1, 1), 13, 4, 4, 50, 0),  # over the border of a block
    ("blocked", (1, 1, 1), 16, 5, 3, 9, 3),
    ("blocked", (1, 1, 1), 7, 40, 5, 50, 0),
    ("reference", (2, 2, 2), 16, None, 5, 50, 3),
    ("blocked", (2, 2, 2), 16, 3, 3, 9, 3),  # over the border of a shard
    ("blocked", (1, 2, 4), 16, 7, 6, 50, 0),  # over a whole shard
    ("auto", (1, 2, 4), 16, 4, 4, 50, 0),
]


@pytest.mark.parametrize(("form", "mesh", "length", "window", "size", "mean", "padding"), IMAGES)
def test_soft_tokens_see_all_of_their_image(
    form, mesh, length, window, size, mean, padding, mesh_of, packed
):
    places = with_images(packed(8, length, seed=length, mean=mean, padding=padding), size)
    with mesh_of(*mesh):
        Sample(places, 4, 2, window, None).check(form)


@pytest.mark.parametrize("form", ["reference", "blocked"])
def test_in_bfloat16_it_stays_near_the_definition(form, mesh_of, packed):
    # Scores of tens: were they kept in bfloat16 too, weights would be off by tenths.
    sample = Sample(packed(2, 13, mean=9), 4, 2, 4, None, jnp.bfloat16, sharpness=16)
    with mesh_of():
        sample.check(form, "bf16")


SPLITS = [
    ("reference", (2, 2, 2), None),
    ("reference", (1, 2, 4), 5),
    ("blocked", (2, 2, 2), 3),  # inside the neighbouring shard
    ("blocked", (1, 2, 4), 4),  # exactly the neighbouring shard
    ("blocked", (1, 2, 4), 7),  # beyond the neighbouring shard
    ("blocked", (2, 1, 4), 3),
    ("auto", (1, 8, 1), 3),
]


@pytest.fixture
def blocks_of_three(monkeypatch):
    """Windows of several blocks, and blocks that a row fills in part, though both are short."""
    monkeypatch.setattr(blocked, "BLOCK", 3)


@pytest.mark.parametrize("case", {**CASES, **GLOBAL_CASES})
def test_in_many_blocks_it_is_the_same(case, blocks_of_three, mesh_of, packed):
    length, heads, key_heads, window, soft_cap, mean, padding = {**CASES, **GLOBAL_CASES}[case]
    places = packed(2, length, seed=length, mean=mean, padding=padding)
    with mesh_of():
        Sample(places, heads, key_heads, window, soft_cap).check("blocked")


@pytest.mark.parametrize(("window", "size"), [(None, 5), (7, 6), (4, 4)])
def test_in_many_blocks_soft_tokens_see_all_of_their_image(
    window, size, blocks_of_three, mesh_of, packed
):
    places = with_images(packed(4, 16, seed=3, mean=50, padding=3), size)
    with mesh_of(1, 2, 2):
        Sample(places, 4, 2, window, None).check("blocked")


@pytest.mark.parametrize(("form", "mesh", "window"), SPLITS)
def test_split_over_sequences_and_positions_it_is_the_same(form, mesh, window, mesh_of, packed):
    sample = Sample(packed(8, 16, mean=9, padding=3), 4, 2, window, 2.0)
    with mesh_of(*mesh):
        sample.check(form)


def test_long_rows_hold_no_array_of_all_pairs(monkeypatch, mesh_of, packed, largest_arrays):
    monkeypatch.setattr(door, "LONG", 95)
    monkeypatch.setattr(blocked, "BLOCK", 16)
    sample = Sample(packed(1, 96), 2, 1, window=None, soft_cap=None)
    with mesh_of():
        shapes = largest_arrays(compiled(sample, "auto"))
    assert not [shape for shape in shapes if sum(n >= 96 for n in shape) >= 2]


def compiled(sample, implementation) -> str:
    program, arguments = sample.program(implementation)
    return program.lower(*arguments).compile().as_text()


@pytest.mark.parametrize("form", ["blocked", "auto"])
def test_the_local_form_holds_no_array_of_all_pairs(form, mesh_of, packed, largest_arrays):
    sample = Sample(packed(1, 96), 2, 1, window=4, soft_cap=None)
    with mesh_of():
        local, reference = compiled(sample, form), compiled(sample, "reference")
    assert any(shape.count(96) >= 2 for shape in largest_arrays(reference))
    shapes = largest_arrays(local)
    assert not [shape for shape in shapes if sum(n >= 96 for n in shape) >= 2]
    # Two windows of scores a query, in each of two heads, and nothing larger.
    assert max(np.prod(shape) for shape in shapes) <= 2 * 96 * 2 * max(4, HEAD)
