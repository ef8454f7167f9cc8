"""The loss against a few hundred candidates a token, against autodiff of its dense form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gemma_train.kernels.vocabulary.chunk import soft_chunk
from gemma_train.kernels.vocabulary.loss import vocabulary_loss
from gemma_train.kernels.vocabulary.soft_target import (
    block_length,
    factors,
    is_one_hot,
    one_hot_sum,
    sent,
)
from gemma_train.kernels.vocabulary.terms import LossTerms, Targets
from gemma_train.mesh import MeshConfig
from gemma_train.zero3 import axes_of
from tests.kernels.vocabulary.autodiff import (
    LENGTH,
    OUTER,
    ROWS,
    check,
    dense_target,
    expected,
    in_place,
    rounded,
    states_and_table,
    token_weights,
    with_gradients,
)
from tests.tolerances import TOLERANCES, assert_close

VOCABULARY, KEPT = 296, 24
FORMS = pytest.mark.parametrize("form", ["one_hot", "scatter"])


def teacher(random) -> np.ndarray:
    """Probabilities [b, t, v] of a teacher that is sure of some tokens, and of some is not."""
    logits = random.normal(size=(ROWS, LENGTH, VOCABULARY)) * random.uniform(
        0.5, 4.0, (ROWS, LENGTH, 1)
    )
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def top_k(p, random):
    ids = np.argsort(-p, axis=-1)[..., :KEPT]
    kept = np.take_along_axis(p, ids, -1)
    return ids, kept / kept.sum(-1, keepdims=True)


def counts(p, random):
    """Drawn with replacement: equal ids, which add up."""
    draws = random.random((ROWS, LENGTH, KEPT))
    ids = (np.cumsum(p, -1)[..., None, :] < draws[..., None]).sum(-1)
    return np.minimum(ids, VOCABULARY - 1), np.full(ids.shape, 1 / KEPT)


def gumbel(p, random):
    """Drawn without replacement, and made to sum to 1."""
    ids = np.argsort(-(np.log(p) + random.gumbel(size=p.shape)), axis=-1)[..., :KEPT]
    kept = np.take_along_axis(p, ids, -1)
    return ids, kept / kept.sum(-1, keepdims=True)


def multinomial(p, random):
    """Drawn with replacement, what is drawn again weighs nothing, and made to sum to 1."""
    ids, _ = counts(p, random)
    again = (ids[..., :, None] == ids[..., None, :]) & np.tri(KEPT, k=-1, dtype=bool)
    kept = np.where(again.any(-1), 0.0, np.take_along_axis(p, ids, -1))
    return ids, kept / kept.sum(-1, keepdims=True)


def priority(p, random):
    """Weights that are right in the mean, and do not sum to 1."""
    rank = p / random.random(p.shape)
    ids = np.argsort(-rank, axis=-1)
    tau = np.take_along_axis(rank, ids[..., KEPT : KEPT + 1], -1)
    return ids[..., :KEPT], np.maximum(np.take_along_axis(p, ids[..., :KEPT], -1), tau)


def dense(p, random):
    return np.broadcast_to(np.arange(VOCABULARY), p.shape), p


def ragged(p, random):
    """Some twice, and fewer than asked: what is left weighs 0, whatever its id; some are silent."""
    ids, kept = (x.copy() for x in top_k(p, random))
    ids[..., 1::4] = ids[..., ::4]
    off = random.random(ids.shape) < 0.4
    off[random.random((ROWS, LENGTH)) < 0.2] = True
    kept[off] = 0.0
    ids[off] = random.choice([-1, -VOCABULARY, 0, VOCABULARY - 1, VOCABULARY, 10**6], off.sum())
    return ids, kept


SAMPLERS = [top_k, gumbel, multinomial, counts, priority, dense, ragged]


def sample(width: int, sampler=top_k, *, hard_weight=False, dtype=jnp.float32):
    """States, table, targets and weights."""
    random = np.random.default_rng(width)
    states, table = states_and_table(random, width, VOCABULARY)
    ids, kept = sampler(teacher(random), random)
    weights = token_weights(random)
    targets = Targets(
        hard_bt=random.integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32),
        candidates_btq=np.int32(ids),
        probabilities_btq=np.float32(kept),
        hard_weights_bt=np.float32(random.random((ROWS, LENGTH))) if hard_weight else None,
    )
    return rounded(states, dtype), rounded(table, dtype), targets, weights


TERMS = {
    "plain": LossTerms(chunk=32),
    "a chunk that does not divide": LossTerms(chunk=7),
    "a soft cap": LossTerms(soft_cap=4.0, chunk=32),
    "a z-loss": LossTerms(z_loss=0.03, chunk=32),
    "a temperature": LossTerms(temperature=2.5, chunk=32),
    "the candidates alone": LossTerms(student="candidates", chunk=32),
    "all together": LossTerms(z_loss=0.03, soft_cap=4.0, temperature=0.7, chunk=7),
}


@FORMS
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_every_sampler_it_equals_autodiff_of_the_dense_loss(sampler, form, mesh_of):
    with mesh_of():
        check(sample(12, sampler), LossTerms(chunk=32, soft_form=form))


@FORMS
@pytest.mark.parametrize("terms", TERMS)
def test_so_it_does_with_all_its_terms(terms, form, mesh_of):
    with mesh_of():
        arrays = sample(12, ragged, hard_weight=terms in ("plain", "all together"))
        check(arrays, replace(TERMS[terms], soft_form=form))


# (mesh, width, rows axes of the table, columns axes): a width of 7 sends every axis to v.
SPLITS = [
    ((2, 1, 2), 7, ["seq"], []),
    ((2, 2, 2), 12, ["seq"], ["data_major"]),
    ((1, 1, 4), 7, ["seq"], []),
    ((1, 4, 2), 7, ["data_major", "seq"], []),
]


@FORMS
@pytest.mark.parametrize("terms", ["all together", "the candidates alone"])
@pytest.mark.parametrize(("mesh", "width", "rows", "columns"), SPLITS)
def test_split_over_a_mesh_it_is_the_same(mesh, width, rows, columns, terms, form, mesh_of):
    arrays = sample(width, ragged, hard_weight=True)
    with mesh_of(*mesh):
        assert axes_of(in_place(arrays)[1]) == [rows, columns]
        check(arrays, replace(TERMS[terms], soft_form=form))


@FORMS
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_so_it_is_of_every_sampler(sampler, devices, form, mesh_of):
    arrays = sample(7, sampler, hard_weight=True)
    with mesh_of(seq=devices):
        check(arrays, replace(TERMS["all together"], soft_form=form))


@FORMS
@pytest.mark.parametrize(("mesh", "width"), [((1, 1, 1), 12), ((2, 2, 2), 12)])
@pytest.mark.parametrize("terms", ["plain", "all together"])
def test_in_bfloat16_it_stays_near_the_dense_loss(terms, mesh, width, form, mesh_of):
    with mesh_of(*mesh):
        check(sample(width, dtype=jnp.bfloat16), replace(TERMS[terms], soft_form=form), "bf16")


@FORMS
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("hard_weight", [False, True])
@pytest.mark.parametrize("terms", ["plain", "all together"])
def test_gradients_by_bfloat16_logits_are_right_to_their_rounding(
    terms, hard_weight, sampler, devices, form, mesh_of
):
    """Apart from what else is rounded: the gradients that the kernel gives away."""
    terms, dtype = replace(TERMS[terms], soft_form=form), jnp.bfloat16
    arrays = sample(12, sampler, hard_weight=hard_weight, dtype=dtype)
    states, table, targets, weights = arrays
    flat = jax.tree.map(lambda x: x.reshape(ROWS * LENGTH, *x.shape[2:]), (targets, weights))

    def chunk(states_cd, table_vd, targets, weights_c):
        targets = sent(targets, terms, dtype)
        here = targets.of_chunk(jax.lax.axis_index("seq") * len(table_vd))
        (loss, _), powers_cv, scale_c, _ = soft_chunk(
            states_cd, table_vd, here, weights_c, terms, ["seq"]
        )
        return loss, powers_cv, scale_c

    whole, rows = PartitionSpec(), PartitionSpec("seq")
    with mesh_of(seq=devices):
        split = jax.shard_map(
            chunk,
            in_specs=(whole, rows, whole, whole),
            out_specs=(whole, PartitionSpec(None, "seq"), whole),
            check_vma=False,
        )
        states_cd, table_vd = (jnp.asarray(x, dtype) for x in (states.reshape(-1, 12), table))
        loss, powers_cv, scale_c = jax.jit(split)(
            states_cd, jax.sharding.reshard(table_vd, rows), *flat
        )
        wanted = expected(arrays, terms)
    powers_cv = OUTER * np.float32(powers_cv) * np.asarray(scale_c)[:, None]
    # The one-hot form's weights are near; the loss of equal ones feels it (1.5e-4 here).
    most = 3e-4 if form == "one_hot" else TOLERANCES["fp32"]
    assert abs(OUTER * loss / wanted[0] - 1.0) < most
    by_states, by_table = powers_cv @ table, powers_cv.T @ states.reshape(-1, 12)
    for one, other in ((by_states.reshape(states.shape), wanted[2]), (by_table, wanted[3])):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < TOLERANCES["bf16 gradient"]


@FORMS
@pytest.mark.parametrize("terms", ["plain", "all together"])
def test_bfloat16_gradients_are_off_by_few_roundings(terms, form, mesh_of):
    """By those of the gradient by the logits; by the states', which are bfloat16, once more.

    As they are independent, by less than twice the error of the exact gradient rounded once. The
    table's, which is float32, is off by no more than the gradient by the logits makes it.
    """
    terms, arrays = replace(TERMS[terms], soft_form=form), sample(64, dtype=jnp.bfloat16)
    with mesh_of():
        found = with_gradients(vocabulary_loss)(*in_place(arrays, jnp.bfloat16), terms)[2:]
        wanted = [np.float32(x) for x in expected(arrays, terms)[2:]]
    by_states, by_table = (
        np.linalg.norm(np.float32(one) - other) / np.linalg.norm(other)
        for one, other in zip(found, wanted, strict=True)
    )
    exact = wanted[0]
    rounded_once = np.linalg.norm(np.float32(jnp.asarray(exact, jnp.bfloat16)) - exact)
    assert by_states < 2.0 * rounded_once / np.linalg.norm(exact)
    assert by_table < TOLERANCES["bf16 gradient"]


# (mesh, width, the most that the table's gradient may be off): it is rounded if columns are split.
LEAVING = [
    ((1, 1, 1), 12, 2e-3),
    ((1, 1, 2), 7, 2e-3),
    ((1, 1, 4), 7, 2e-3),
    ((2, 2, 2), 12, 3.2e-3),
]


@FORMS
@pytest.mark.parametrize(("mesh", "width", "most"), LEAVING)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("hard_weight", [False, True])
def test_gradients_leave_the_kernel_as_exact_as_the_docs_say(
    hard_weight, sampler, mesh, width, most, form, mesh_of
):
    """docs/distillation.md has the figures; the states' are rounded once more as they leave."""
    terms = replace(TERMS["all together"], soft_form=form)
    arrays = sample(width, sampler, hard_weight=hard_weight, dtype=jnp.bfloat16)
    with mesh_of(*mesh):
        found = with_gradients(vocabulary_loss)(*in_place(arrays, jnp.bfloat16), terms)[2:]
        wanted = expected(arrays, terms)[2:]
    for one, other, bound in zip(found, wanted, (3.6e-3, most), strict=True):
        other = np.float32(other)
        assert np.linalg.norm(np.float32(one) - other) / np.linalg.norm(other) < bound


def test_two_factors_hold_a_weight_that_one_bfloat16_cannot():
    random = np.random.default_rng(0)
    weights = np.float32(10.0 ** random.uniform(-8, 0, (4, 500)))
    scales, rests = (np.float32(x) for x in jax.jit(factors, static_argnums=1)(weights, "bfloat16"))
    assert ((scales >= 1.0) & (scales < 1.25)).all()
    off = np.abs(scales * rests / weights - 1.0)
    assert np.sqrt((off**2).mean()) < 2e-4, "one alone: 1.7e-3"
    assert off.max() < 1e-3
    held = np.float32([0.0, 1.0, 0.125, 0.3984375])
    scales, rests = (np.float32(x) for x in factors(jnp.asarray(held), jnp.bfloat16))
    assert (scales * rests == held).all()


@FORMS
def test_a_target_that_the_student_meets_gives_no_gradient(form, mesh_of):
    """Also in bfloat16, where the target's sum is of the rounded weights: the two terms cancel."""
    with mesh_of():
        states, table, targets, weights = sample(12, dense, dtype=jnp.bfloat16)
        p = jax.nn.softmax(jnp.einsum("btd,vd->btv", states, table, precision="highest"))
        met = replace(targets, probabilities_btq=np.asarray(p))
        terms = LossTerms(chunk=32, soft_form=form)
        none, some = (
            np.asarray(with_gradients(vocabulary_loss)(*in_place(x, jnp.bfloat16), terms)[3])
            for x in ((states, table, met, weights), (states, table, targets, weights))
        )
    assert np.linalg.norm(none) < TOLERANCES["bf16"] * np.linalg.norm(some)


def within(targets, end: int):
    """The targets with candidates below `end` only."""
    return replace(targets, candidates_btq=targets.candidates_btq % end)


@FORMS
def test_a_student_over_the_candidates_alone_leaves_other_tokens_where_they_are(form, mesh_of):
    arrays = sample(12, top_k)
    arrays = *arrays[:2], within(arrays[2], 200), arrays[3]
    others = dense_target(arrays[2], VOCABULARY).max(axis=(0, 1)) == 0
    assert others[200:].all()
    with mesh_of():
        for student in ("candidates", "full"):
            terms = LossTerms(chunk=32, student=student, soft_form=form)
            moved = np.asarray(with_gradients(vocabulary_loss)(*in_place(arrays), terms)[3])[others]
            assert moved.any() == (student == "full")
            assert student == "candidates" or (np.abs(moved).max(axis=1) > 0).all()


@FORMS
def test_without_any_loss_everything_is_zero(form, mesh_of):
    states, table, targets, weights = sample(12, ragged)
    with mesh_of():
        for student in ("full", "candidates"):
            arrays = in_place((states, table, targets, 0 * weights))
            terms = LossTerms(z_loss=0.1, student=student, soft_form=form)
            for array in with_gradients(vocabulary_loss)(*arrays, terms):
                assert not np.asarray(array).any()


@pytest.mark.parametrize("rows", [40, 128, 296, 16_384, 32_768])
def test_the_two_level_one_hot_sums_candidates_wherever_they_are(rows):
    random = np.random.default_rng(0)
    ids = random.integers(-rows, 2 * rows, (3, 50), dtype=np.int32)
    ids[:, :4] = (-1, 0, rows - 1, rows)
    ids[:, 4:10] = rows // 2
    weights = random.random((3, 50), dtype=np.float32)
    expected = np.zeros((3, rows), np.float32)
    for row in range(3):
        inside = (ids[row] >= 0) & (ids[row] < rows)
        np.add.at(expected[row], ids[row][inside], weights[row][inside])
    assert_close(one_hot_sum(ids, weights, None, rows, jnp.float32), expected, "fp32")


def test_blocks_are_whole_lanes_near_the_square_root():
    lengths = (40, 4096, 16_384, 32_768, 65_536, 262_144)
    assert [block_length(rows) for rows in lengths] == [128, 128, 128, 256, 256, 512]


def test_the_form_is_the_meshs_unless_it_is_asked_for(mesh_of, mesh_of_chips):
    with mesh_of():
        assert not is_one_hot(LossTerms())
        assert is_one_hot(LossTerms(soft_form="one_hot"))
    with jax.set_mesh(mesh_of_chips(MeshConfig(data=4, topology="v5e:2x2"))):
        assert is_one_hot(LossTerms())
        assert not is_one_hot(LossTerms(soft_form="scatter"))


@FORMS
def test_no_array_of_tokens_by_vocabulary_is_ever_held(form, mesh_of, largest_arrays):
    def largest(chunk: int) -> int:
        arguments = (*in_place(sample(12)), LossTerms(chunk=chunk, soft_form=form))
        program = with_gradients(vocabulary_loss).lower(*arguments).compile().as_text()
        return max(np.prod(shape) for shape in largest_arrays(program))

    tokens = ROWS * LENGTH
    with mesh_of():
        assert largest(chunk=tokens) >= tokens * VOCABULARY
        assert largest(chunk=4) < tokens * VOCABULARY / 2
