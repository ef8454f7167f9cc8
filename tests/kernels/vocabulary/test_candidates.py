"""A teacher's candidates: samplers against their definitions, their bias, and any mesh."""

import functools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_train.axes import activation
from gemma_train.kernels.vocabulary.candidates import draw, draw_from_logits, uniforms
from gemma_train.kernels.vocabulary.running_sum import LANES
from gemma_train.samplers import Counts, Dense, Gumbel, Multinomial, Priority, TopK
from gemma_train.zero3 import axes_of
from tests.kernels.vocabulary.autodiff import LENGTH, ROWS, in_place
from tests.tolerances import assert_close

VOCABULARY, KEPT = 40, 6
ALL = [
    TopK(candidates=KEPT),
    TopK(candidates=KEPT, recall=0.9),
    Gumbel(candidates=KEPT),
    Multinomial(candidates=KEPT),
    Counts(candidates=KEPT),
    Priority(candidates=KEPT),
    Dense(),
]


def name(sampler) -> str:
    return type(sampler).__name__ + (" fast" if getattr(sampler, "recall", 1) < 1 else "")


def sample(width: int, seed: int = 0):
    """States, table and draws of a teacher."""
    random = np.random.default_rng(seed)
    states = np.float32(random.normal(size=(ROWS, LENGTH, width)))
    table = np.float32(random.normal(size=(VOCABULARY, width)))
    return states, table, random.integers(0, 2**32, (ROWS, LENGTH), dtype=np.uint32)


def drawn(arrays, sampler, *, temperature=1.0, soft_cap=None, chunk=1000):
    run = functools.partial(
        draw, sampler=sampler, temperature=temperature, soft_cap=soft_cap, chunk=chunk
    )
    candidates, probabilities = jax.jit(run)(*arrays)
    assert candidates.dtype == jnp.int32
    assert probabilities.dtype == jnp.float32
    assert candidates.sharding.spec == probabilities.sharding.spec == activation("btq")
    return np.asarray(candidates), np.asarray(probabilities)


def softmax(logits):
    powers = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def targets(candidates, probabilities, vocabulary):
    """The weights as a dense target [token, vocabulary]: equal candidates add up."""
    dense = np.zeros((len(candidates), vocabulary))
    np.add.at(dense, (np.arange(len(candidates))[:, None], candidates), probabilities)
    return dense


def logits_of(arrays, temperature=1.0, soft_cap=None):
    logits = np.einsum("btd,vd->btv", *map(np.float64, arrays[:2])).reshape(-1, VOCABULARY)
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    return logits / temperature


def restricted(p, kept):
    """p renormalised over the tokens that are kept."""
    inside = np.where(kept, p, 0)
    return inside / inside.sum(axis=-1, keepdims=True)


def by_definition(sampler, logits, draws):
    """The dense target that a sampler's definition gives with the same random numbers."""
    p, draws = softmax(logits), jnp.asarray(draws.reshape(-1))
    ids, numbers = (jnp.arange(n, dtype=jnp.uint32) for n in (logits.shape[1], KEPT))
    u, u_drawn = (np.float64(uniforms(draws, x)) for x in (ids, numbers))
    match sampler:
        case TopK():
            order = p
        case Gumbel():
            order = np.log(p) - np.log(-np.log1p(-u))
        case Priority():
            order = p / u
        case Dense():
            return p
        case Multinomial() | Counts():
            chosen = [
                np.searchsorted(*one, "right") for one in zip(p.cumsum(1), u_drawn, strict=True)
            ]
            counts = targets(chosen, np.full(np.shape(chosen), 1 / KEPT), p.shape[1])
            return counts if isinstance(sampler, Counts) else restricted(p, counts > 0)
    ranked = np.sort(order, axis=1)[:, ::-1]
    kept = order >= ranked[:, KEPT - 1 : KEPT]
    if isinstance(sampler, Priority):
        return np.where(kept, np.maximum(p, ranked[:, KEPT : KEPT + 1]), 0)
    return restricted(p, kept)


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("sampler", ALL, ids=name)
def test_a_sampler_gives_what_it_is_defined_to_give(sampler, chunk, mesh_of):
    arrays, changes = sample(12), {"temperature": 1.7, "soft_cap": 5.0}
    with mesh_of():
        found = drawn(in_place(arrays), sampler, chunk=chunk, **changes)
    kept = VOCABULARY if isinstance(sampler, Dense) else KEPT
    assert found[0].shape == found[1].shape == (ROWS, LENGTH, kept)
    dense = targets(*(x.reshape(-1, kept) for x in found), VOCABULARY)
    expected = by_definition(sampler, logits_of(arrays, **changes), arrays[2])
    assert (dense.astype(bool) == expected.astype(bool)).all()
    assert_close(dense, expected, "fp32")


# (mesh, width, rows axes of the table): a width of 7 sends every axis to v.
SPLITS = [
    ((2, 1, 2), 12, []),
    ((1, 4, 2), 12, ["seq"]),
    ((2, 2, 2), 12, ["seq"]),
    ((1, 8, 1), 7, ["data_major", "data_minor"]),
    ((1, 4, 2), 7, ["data_major", "seq"]),
]


@pytest.mark.parametrize("sampler", [*ALL, Priority(candidates=VOCABULARY)], ids=repr)
@pytest.mark.parametrize(("mesh", "width", "rows"), SPLITS)
def test_on_any_mesh_the_same_is_drawn(mesh, width, rows, sampler, mesh_of):
    arrays, changes = sample(width), {"temperature": 1.7, "soft_cap": 5.0, "chunk": 5}
    with mesh_of():
        one = drawn(in_place(arrays), sampler, **changes)
    with mesh_of(*mesh):
        placed = in_place(arrays)
        assert axes_of(placed[1])[0] == rows
        for table in (placed, in_place(arrays, whole=True)):
            many = drawn(table, sampler, **changes)
            np.testing.assert_array_equal(many[0], one[0])
            assert_close(many[1], one[1], "fp32")


@pytest.mark.parametrize("sampler", ALL, ids=name)
def test_a_row_draws_the_same_wherever_it_stands(sampler, mesh_of):
    states, table, draws = sample(12)
    order = np.random.default_rng(1).permutation(ROWS)
    with mesh_of():
        straight = drawn(in_place((states, table, draws)), sampler, chunk=7)
        shuffled = drawn(in_place((states[order], table, draws[order])), sampler, chunk=7)
    for one, other in zip(straight, shuffled, strict=True):
        np.testing.assert_array_equal(one[order], other)


def test_equal_logits_give_way_to_the_lower_id_on_any_mesh(mesh_of):
    states, table, draws = sample(7)
    table[:] = table[0]
    for mesh in ((1, 1, 1), (1, 4, 2), (1, 8, 1)):
        with mesh_of(*mesh):
            candidates, probabilities = drawn(
                in_place((states, table, draws)), TopK(candidates=KEPT), chunk=5
            )
        assert (candidates == np.arange(KEPT)).all()
        assert_close(probabilities, np.full(probabilities.shape, 1 / KEPT), "fp32")


@pytest.mark.parametrize("sampler", ALL, ids=name)
def test_extreme_logits_stay_finite_and_states_of_padding_too(sampler, mesh_of):
    states, table, draws = sample(12)
    states[0], states[1] = 0.0, 1e4 * states[1]
    with mesh_of(1, 4, 2):
        candidates, probabilities = drawn(in_place((states, table, draws)), sampler, chunk=5)
    assert ((candidates >= 0) & (candidates < VOCABULARY)).all()
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0).all()
    assert (probabilities.sum(axis=-1) > 0).all()


def test_repeats_of_a_multinomial_draw_weigh_nothing():
    logits = jnp.log(jnp.array([[0.9, 0.05, 0.03, 0.02]])) + jnp.zeros((500, 1))
    draws = jnp.arange(500, dtype=jnp.uint32)
    candidates, probabilities = map(
        np.asarray, draw_from_logits(logits, draws, Multinomial(candidates=3))
    )
    assert (probabilities[candidates == 0].reshape(-1) > 0).any()
    for ids, weights in zip(candidates, probabilities, strict=True):
        assert len(np.unique(ids)) == (weights > 0).sum()
    assert_close(probabilities.sum(axis=1), np.ones(500), "fp32")


def test_random_numbers_are_uniform_and_differ_by_draw_and_by_number():
    draws, numbers = (jnp.arange(n, dtype=jnp.uint32) for n in (300, 500))
    found = np.float64(uniforms(draws, numbers))
    assert ((found > 0) & (found < 1)).all()
    assert len(np.unique(found)) > 0.98 * found.size
    np.testing.assert_array_equal(found[7, 100:], uniforms(draws[7:8], numbers[100:])[0])
    in_tenths, _ = np.histogram(found, bins=10, range=(0, 1))
    expected = found.size / 10
    assert ((in_tenths - expected) ** 2 / expected).sum() < 27.9  # chi-squared, p = 0.001
    for one, other in ((found[1:], found[:-1]), (found[:, 1:], found[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)


TRIALS, SMALL, DRAWN = 20_000, 24, 6
TEACHER = np.float32(-1.3 * np.log(np.arange(1, SMALL + 1)))  # p ~ rank ** -1.3


@functools.cache
def trials(sampler):
    """The dense targets of many draws from one distribution."""
    logits = jnp.broadcast_to(TEACHER, (TRIALS, SMALL))
    found = jax.jit(draw_from_logits, static_argnums=2)(
        logits, jnp.arange(TRIALS, dtype=jnp.uint32), sampler
    )
    return targets(*map(np.asarray, found), SMALL)


def unbiased(sampler) -> bool:
    """Whether no token's mean target is further from p than chance has it, once in a thousand."""
    found = trials(sampler)
    bound = NormalDist().inv_cdf(1 - 0.001 / SMALL / 2)  # Bonferroni, both sides
    error = np.abs(found.mean(axis=0) - softmax(TEACHER))
    return bool((error <= bound * found.std(axis=0) / np.sqrt(TRIALS) + 1e-6).all())


@pytest.mark.parametrize("sampler", [Priority(candidates=DRAWN), Counts(candidates=DRAWN), Dense()])
def test_priority_and_counts_are_unbiased(sampler):
    assert unbiased(sampler)


@pytest.mark.parametrize("sampler", [TopK, Gumbel, Multinomial])
def test_what_is_renormalised_is_not(sampler):
    assert not unbiased(sampler(candidates=DRAWN))


def test_priority_varies_less_than_counts():
    error = {
        sampler: ((trials(sampler(candidates=DRAWN)) - softmax(TEACHER)) ** 2).sum(axis=1).mean()
        for sampler in (Priority, Counts)
    }
    assert error[Priority] < 0.5 * error[Counts]


@pytest.mark.parametrize("sampler", ALL[:-1], ids=name)
def test_no_array_of_tokens_by_vocabulary_is_ever_held(sampler, mesh_of, largest_arrays):
    def sizes(chunk: int) -> set[int]:
        run = functools.partial(draw, sampler=sampler, temperature=1.0, soft_cap=None, chunk=chunk)
        shapes = largest_arrays(jax.jit(run).lower(*in_place(sample(12))).compile().as_text())
        return {math.prod(shape) for shape in shapes}

    tokens = ROWS * LENGTH
    whole = {tokens * VOCABULARY, tokens * LANES}  # as it is, or in whole blocks
    with mesh_of():
        assert sizes(chunk=tokens) & whole
        assert not sizes(chunk=8) & whole
