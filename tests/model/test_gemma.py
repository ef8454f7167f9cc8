"""The model of each generation against a plain loop over layers, written from the definitions."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.leaves import by_path, from_paths
from gemma_train.model import Cache, ComputeConfig, Gemma, GemmaConfig
from tests.tolerances import TOLERANCES, assert_close, assert_close_leaves

COMPUTE = ComputeConfig(dtype="float32", remat="none")
ROWS, LENGTH = 3, 12

GEMMA1 = GemmaConfig(
    vocabulary=24,
    width=12,
    layers=3,
    query_heads=4,
    key_value_heads=1,
    head_dimension=6,
    hidden=16,
    context=LENGTH,
)
GEMMA2 = replace(
    GEMMA1,
    layers=5,
    key_value_heads=2,
    pattern=("local", "global"),
    window=4,
    query_scale=3.0,
    post_norms=True,
    attention_soft_cap=2.0,
    final_soft_cap=3.0,
)
GEMMA3 = replace(
    GEMMA1,
    layers=8,
    key_value_heads=4,
    pattern=("local", "local", "global"),
    window=3,
    query_key_norm=True,
    post_norms=True,
    local_rope_base=100.0,
    global_rope_base=1000.0,
    global_rope_factor=8.0,
)


def rms_norm(x, w):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + w)


def rope(x, positions, base, factor):
    """The first half of a head and the second are the two parts of complex numbers that turn."""
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] / factor * base ** (-2 * np.arange(half) / x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def cap(x, at):
    return x if at is None else at * np.tanh(x / at)


def attend(config, layer, x, positions, segments, local):
    query = np.einsum("btd,dnh->btnh", x, layer["attention/query"])
    key = np.einsum("btd,dkh->btkh", x, layer["attention/key"])
    value = np.einsum("btd,dkh->btkh", x, layer["attention/value"])
    if config.query_key_norm:
        query = rms_norm(query, layer["attention/query_norm"])
        key = rms_norm(key, layer["attention/key_norm"])
    base = config.local_rope_base if local else config.global_rope_base
    factor = 1.0 if local else config.global_rope_factor
    query, key = (rope(z, positions, base, factor) for z in (query, key))
    query = query / np.sqrt(config.query_scale or config.head_dimension)
    group = config.query_heads // config.key_value_heads
    key, value = (np.repeat(z, group, axis=2) for z in (key, value))
    scores = cap(np.einsum("btnh,bsnh->bnts", query, key), config.attention_soft_cap)
    distance = positions[:, :, None] - positions[:, None, :]
    seen = (segments[:, :, None] == segments[:, None, :]) & (distance >= 0)
    if local:
        seen &= distance < config.window
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    heads = np.einsum("bnts,bsnh->btnh", weights, value)
    return np.einsum("btnh,nhd->btd", heads, layer["attention/output"])


def feed_forward(layer, x):
    hidden = gelu_tanh(x @ layer["feed_forward/gate"]) * (x @ layer["feed_forward/up"])
    return hidden @ layer["feed_forward/down"]


def plain_loop(config, parameters, tokens, positions, segments):
    """(states, logits) in float64, one layer after the other."""
    parameters = {path: np.float64(leaf) for path, leaf in parameters.items()}
    table, period = parameters["embedding/table"], len(config.pattern)
    x = table[tokens] * np.sqrt(config.width)
    for i in range(config.layers):
        repetition, place = divmod(i, period)
        stacked = repetition < config.layers // period
        prefix = f"{'pattern' if stacked else 'remainder'}/{place}/"
        layer = {
            path.removeprefix(prefix): leaf[repetition] if stacked else leaf
            for path, leaf in parameters.items()
            if path.startswith(prefix)
        }
        local = config.pattern[place] == "local"
        normed = rms_norm(x, layer["pre_attention_norm"])
        branch = attend(config, layer, normed, positions, segments, local)
        if config.post_norms:
            branch = rms_norm(branch, layer["post_attention_norm"])
        x = x + branch
        branch = feed_forward(layer, rms_norm(x, layer["pre_feed_forward_norm"]))
        if config.post_norms:
            branch = rms_norm(branch, layer["post_feed_forward_norm"])
        x = x + branch
    x = rms_norm(x, parameters["final_norm"])
    return x, cap(x @ table.T, config.final_soft_cap)


@dataclass
class Generation:
    """A tiny model with random norms, its parameters by path, and its compiled forward."""

    config: GemmaConfig
    model: Gemma
    mesh: Any

    @property
    def parameters(self) -> dict:
        return by_path(self.model)

    def run(self, tokens, positions, segments, model=None):
        """(states, logits) of a batch."""
        return self.on_mesh(whole_sequence, model or self.model, tokens, positions, segments)

    def on_mesh(self, program, model, *arrays):
        with self.mesh():
            place = NamedSharding(jax.sharding.get_mesh(), activation("bt"))
            return program(model, *(jax.device_put(np.int32(x), place) for x in arrays))


@jax.jit
def whole_sequence(model, tokens, positions, segments):
    states, cache = model(tokens, positions, segments)
    assert cache is None
    return states, model.unembed(states)


def lively(config: GemmaConfig, compute: ComputeConfig = COMPUTE) -> Gemma:
    """A model whose norm scales are no longer zero, so that a missing or swapped one shows."""
    model = jax.jit(lambda: Gemma(config, compute, nnx.Rngs(0)))()
    random = np.random.default_rng(0)

    def drawn(path, leaf):
        scale = np.float32(random.normal(size=leaf.shape) * 0.4)
        return jax.device_put(scale, leaf.sharding) if path.endswith("norm") else leaf

    return from_paths({path: drawn(path, leaf) for path, leaf in by_path(model).items()}, model)


@pytest.fixture(
    scope="module", params=[GEMMA1, GEMMA2, GEMMA3], ids=["Gemma 1", "Gemma 2", "Gemma 3"]
)
def generation(request, mesh_of) -> Generation:
    with mesh_of():
        return Generation(config=request.param, model=lively(request.param), mesh=mesh_of)


def tokens_of(rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, GEMMA1.vocabulary, (rows, length))


def test_it_equals_a_plain_loop_over_the_layers(generation, packed):
    positions, segments = packed(ROWS, LENGTH, mean=8, padding=2)
    assert len({len(set(row)) for row in segments.tolist()}) > 1, "rows of several documents"
    tokens, real = tokens_of(), segments > 0
    found = generation.run(tokens, positions, segments)
    expected = plain_loop(generation.config, generation.parameters, tokens, positions, segments)
    for one, other, what in zip(found, expected, ("states", "logits"), strict=True):
        assert_close(np.asarray(one)[real], other[real], "deep fp32", what)


def test_the_scan_holds_what_repeats_and_the_remainder_what_is_left(generation):
    config, parameters = generation.config, generation.parameters
    repetitions, left_over = divmod(config.layers, len(config.pattern))
    stacks = {leaf.shape[0] for path, leaf in parameters.items() if path.startswith("pattern/")}
    blocks = {path.split("/")[1] for path in parameters if path.startswith("remainder/")}
    assert stacks == {repetitions}
    assert len(blocks) == left_over
    draws = {np.asarray(leaf).ravel()[0] for leaf in parameters.values() if leaf.ndim > 2}
    assert len(draws) == sum(leaf.ndim > 2 for leaf in parameters.values()), "no draw twice"


def test_tokens_of_one_document_do_not_see_another(generation):
    tokens, other = tokens_of(), tokens_of(seed=1)
    first, middle = 5, 9  # the second document stands at 5 to 8
    segments = np.tile(np.repeat([1, 2, 3], [first, middle - first, LENGTH - middle]), (ROWS, 1))
    positions = np.tile([*range(5), *range(4), *range(3)], (ROWS, 1))
    here = slice(first, middle)
    mixed = np.where(segments == 2, tokens, other)
    in_row, among_others = (
        np.asarray(generation.run(which, positions, segments)[1]) for which in (tokens, mixed)
    )
    np.testing.assert_array_equal(in_row[:, here], among_others[:, here])
    assert np.abs(in_row - among_others)[:, :first].max() > 0.01
    # And alone at the head of a row, it gives what it gave in the middle of another.
    length = middle - first
    alone, lone_positions, lone_segments = (np.zeros_like(tokens) for _ in range(3))
    alone[:, :length], lone_segments[:, :length] = tokens[:, here], 1
    lone_positions[:, :length] = np.arange(length)
    by_itself = np.asarray(generation.run(alone, lone_positions, lone_segments)[1])
    assert_close(by_itself[:, :length], in_row[:, here], "deep fp32")


def test_no_token_sees_a_later_one_and_each_sees_the_first(generation):
    positions, segments = np.tile(np.arange(LENGTH), (ROWS, 1)), np.ones((ROWS, LENGTH), int)
    tokens = tokens_of()
    base = np.asarray(generation.run(tokens, positions, segments)[1])
    changed = tokens.copy()
    changed[:, 7] = (changed[:, 7] + 1) % GEMMA1.vocabulary
    moved = np.abs(np.asarray(generation.run(changed, positions, segments)[1]) - base).max(-1)
    np.testing.assert_array_equal(moved[:, :7], 0.0)
    assert (moved[:, 7:] > 0).all()


@jax.jit
def with_cache(model, tokens, positions, segments, cache):
    states, cache = model(tokens, positions, segments, cache)
    return model.unembed(states), cache


PROMPT = 7
# (columns of the prompt, where its padding stands): 0, 2 and 5 tokens of it in the three rows.
PROMPTS = [(1, "nowhere"), (PROMPT, "left"), (PROMPT, "right")]


@pytest.mark.parametrize(("prompt", "side"), PROMPTS)
def test_with_a_cache_token_by_token_it_equals_the_whole_sequence(generation, prompt, side):
    """The windows of 3 and 4 bite, and their slots are used again."""
    pads = np.array([0, 2, 5]) if side != "nowhere" else np.zeros(ROWS, int)
    column = np.arange(LENGTH)
    if side == "right":
        padded = (column >= PROMPT - pads[:, None]) & (column < PROMPT)
    else:
        padded = column < pads[:, None]
    segments = (~padded).astype(int)
    positions = np.where(padded, 0, np.cumsum(segments, axis=1) - 1)
    tokens = np.where(padded, 0, tokens_of())
    # The whole sequence has the same tokens without padding between them.
    order = np.argsort(padded, axis=1, kind="stable")
    together = (np.take_along_axis(x, order, axis=1) for x in (tokens, positions, segments))
    logits = np.asarray(generation.run(*together)[1])
    expected = np.take_along_axis(logits, np.argsort(order, axis=1)[..., None], axis=1)
    found = np.zeros_like(expected)
    with generation.mesh():
        cache = Cache.empty(generation.config, ROWS, LENGTH, "float32")
    start = 0
    for end in range(prompt, LENGTH + 1):
        part = (tokens[:, start:end], positions[:, start:end], segments[:, start:end])
        found[:, start:end], cache = generation.on_mesh(
            lambda model, *arrays, cache=cache: with_cache(model, *arrays, cache),
            generation.model,
            *part,
        )
        start = end
    assert_close(found[~padded], expected[~padded], "deep fp32")
    local_slots = {
        layer.key_bskh.shape[-3]
        for layer, kind in zip(cache.pattern, generation.config.pattern, strict=True)
        if kind == "local"
    }
    assert local_slots <= {generation.config.window}


def recast(model: Gemma, compute: ComputeConfig) -> Gemma:
    """The same parameters under another ComputeConfig."""
    like = nnx.eval_shape(lambda: Gemma(model.config, compute, nnx.Rngs(0)))
    return from_paths(by_path(model), like)


def test_whatever_is_recomputed_the_gradients_are_the_same(mesh_of, packed):
    config = replace(GEMMA3, layers=3, pattern=("local", "global"))
    positions, segments = packed(ROWS, LENGTH, mean=8)
    with mesh_of():
        model = lively(config)
    generation = Generation(config=config, model=model, mesh=mesh_of)

    def loss(model, *arrays):
        return jnp.sum(jnp.sin(3 * model(*arrays)[0]))

    def gradients(compute) -> tuple[dict, int]:
        """Gradients of a loss of all states by path, and how many products the program computes."""
        with mesh_of():
            other = recast(model, compute)
        arrays = (other, tokens_of(), positions, segments)
        program = generation.on_mesh(jax.jit(jax.grad(loss)).lower, *arrays)
        products = program.as_text().count("dot_general")
        return by_path(generation.on_mesh(program.compile(), *arrays)), products

    expected, fewest = gradients(COMPUTE)
    assert all(np.asarray(gradient).any() for gradient in expected.values())
    found, some = gradients(replace(COMPUTE, remat="save_named"))
    assert_close_leaves(found, expected, "deep fp32")
    found, most = gradients(replace(COMPUTE, remat="full"))
    assert_close_leaves(found, expected, "deep fp32")
    assert fewest < some < most


@pytest.mark.parametrize("layers", [8, 2])
def test_neighbours_in_a_scan_of_their_own_are_the_same_layers(layers, mesh_of, packed):
    config = replace(GEMMA3, layers=layers, pattern=("local", "local", "global"))
    positions, segments = packed(ROWS, LENGTH, mean=8)
    with mesh_of():
        model = lively(config)
    generation = Generation(config=config, model=model, mesh=mesh_of)

    def loss(model, *arrays):
        return jnp.sum(jnp.sin(3 * model(*arrays)[0]))

    def gradients(**changes) -> dict:
        with mesh_of():
            other = recast(model, replace(COMPUTE, **changes))
        arrays = (other, tokens_of(), positions, segments)
        return by_path(generation.on_mesh(jax.jit(jax.grad(loss)), *arrays))

    expected = gradients()
    assert all(np.asarray(gradient).any() for gradient in expected.values())
    for remat in ("none", "full", "save_named"):
        found = gradients(scan_neighbours=True, remat=remat)
        assert_close_leaves(found, expected, "deep fp32")


def test_in_bfloat16_two_layers_stay_near_float32_on_average(generation, packed):
    config = replace(generation.config, layers=2, pattern=generation.config.pattern[-2:])
    positions, segments = packed(ROWS, LENGTH, mean=8)
    with generation.mesh():
        model = lively(config)
        narrow = recast(model, replace(COMPUTE, dtype="bfloat16"))
    arrays = (tokens_of(), positions, segments)
    found, expected = generation.run(*arrays, narrow), generation.run(*arrays, model)
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32]
    for one, other in zip(found, expected, strict=True):
        other = np.asarray(other)
        error = np.linalg.norm(np.asarray(one, np.float32) - other) / np.linalg.norm(other)
        assert error <= TOLERANCES["bf16"]


def test_weights_start_with_the_variance_of_their_fan_in(mesh_of):
    config = replace(GEMMA3, width=64, hidden=96, head_dimension=16, vocabulary=500)
    with mesh_of():
        parameters = by_path(jax.jit(lambda: Gemma(config, COMPUTE, nnx.Rngs(1)))())
    fan_in = {"output": 4 * 16, "down": 96}
    for path, leaf in parameters.items():
        name = path.split("/")[-1]
        if name.endswith("norm"):
            assert not np.asarray(leaf).any(), path
        else:
            expected = fan_in.get(name, 64) ** -0.5
            assert np.std(leaf) == pytest.approx(expected, rel=0.08), path


def test_the_gradient_of_a_frequent_token_keeps_growing_in_bfloat16(mesh_of):
    """4,096 times the same token: a bfloat16 sum stops at 256 times one of them."""
    from gemma_train.axes import activation
    from gemma_train.model.layers import Embedding
    from gemma_train.model.weight import Declaration

    with mesh_of():
        embedding = Embedding(Declaration({"v": 8, "d": 4}, nnx.Rngs(0)))
        tokens_bt = jax.device_put(
            np.full((8, 512), 3, np.int32),
            jax.sharding.NamedSharding(jax.sharding.get_mesh(), activation("bt")),
        )
        gradient = jax.jit(
            jax.grad(lambda layer: jnp.sum(layer(tokens_bt, "bfloat16").astype(jnp.float32)))
        )(embedding)
    np.testing.assert_allclose(np.asarray(gradient.table[...])[3], 4096 * 2.0, rtol=1e-2)
