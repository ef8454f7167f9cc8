"""The loss without logits against autodiff of the loss with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
from gemma_train.zero3 import axes_of
from tests.kernels.vocabulary.autodiff import (
    LENGTH,
    ROWS,
    check,
    in_place,
    rounded,
    states_and_table,
    token_weights,
    with_gradients,
)

VOCABULARY = 40


def sample(width: int, dtype=jnp.float32, largest: float = 6.0):
    """States, table, targets and weights."""
    random = np.random.default_rng(width)
    states, table = states_and_table(random, width, VOCABULARY, largest=largest)
    targets = random.integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
    held = rounded(states, dtype), rounded(table, dtype)
    return *held, Targets(hard_bt=targets), token_weights(random)


TERMS = {
    "plain": LossTerms(chunk=32),
    "a chunk that does not divide": LossTerms(chunk=7),
    "a chunk longer than the batch": LossTerms(chunk=1000),
    "a soft cap": LossTerms(soft_cap=4.0, chunk=32),
    "a z-loss": LossTerms(z_loss=0.03, chunk=32),
    "all together": LossTerms(z_loss=0.03, soft_cap=4.0, chunk=7),
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_it_equals_autodiff_of_the_naive_loss(terms, mesh_of):
    with mesh_of():
        check(sample(12), terms)


# (mesh, width, rows axes of the table, columns axes): a width of 7 sends every axis to v.
SPLITS = [
    ((2, 1, 2), 12, [], ["seq"]),
    ((2, 2, 2), 12, ["seq"], ["data_major"]),
    ((1, 8, 1), 12, ["data_minor"], ["data_major"]),
    ((1, 1, 4), 7, ["seq"], []),
    ((1, 8, 1), 7, ["data_major", "data_minor"], []),
    ((1, 4, 2), 7, ["data_major", "seq"], []),
]


@pytest.mark.parametrize("terms", ["a chunk that does not divide", "all together"])
@pytest.mark.parametrize(("mesh", "width", "rows", "columns"), SPLITS)
def test_split_over_a_mesh_it_is_the_same(mesh, width, rows, columns, terms, mesh_of):
    arrays = sample(width)
    with mesh_of(*mesh):
        assert axes_of(in_place(arrays)[1]) == [rows, columns]
        check(arrays, TERMS[terms])


@pytest.mark.parametrize(("mesh", "width"), [((1, 1, 1), 12), ((1, 4, 2), 7)])
def test_large_logits_stay_finite(mesh, width, mesh_of):
    with mesh_of(*mesh):
        for largest in (80.0, 400.0):
            check(sample(width, largest=largest), LossTerms(chunk=32))


@pytest.mark.parametrize(("mesh", "width"), [((1, 1, 1), 12), ((2, 2, 2), 12)])
def test_in_bfloat16_it_stays_near_the_naive_loss(mesh, width, mesh_of):
    with mesh_of(*mesh):
        check(sample(width, jnp.bfloat16), TERMS["all together"], "bf16")


def test_without_any_loss_everything_is_zero(mesh_of):
    states, table, targets, weights = sample(12)
    with mesh_of():
        arrays = in_place((states, table, targets, 0 * weights))
        for array in with_gradients(vocabulary_loss)(*arrays, LossTerms(z_loss=0.1, chunk=32)):
            assert not np.asarray(array).any()


def test_no_array_of_tokens_by_vocabulary_is_ever_held(mesh_of, largest_arrays):
    def largest(chunk: int) -> int:
        arguments = (*in_place(sample(12)), LossTerms(chunk=chunk))
        program = with_gradients(vocabulary_loss).lower(*arguments).compile().as_text()
        return max(np.prod(shape) for shape in largest_arrays(program))

    with mesh_of():
        assert largest(chunk=ROWS * LENGTH) >= ROWS * LENGTH * VOCABULARY
        # What is left is the states, which come as an argument.
        assert largest(chunk=8) == ROWS * LENGTH * 12


def test_evaluation_computes_no_gradient(mesh_of):
    terms = LossTerms(chunk=32)
    with mesh_of():
        arrays = in_place(sample(12))
        evaluation = jax.jit(vocabulary_loss, static_argnums=4).lower(*arrays, terms).as_text()
        training = with_gradients(vocabulary_loss).lower(*arrays, terms).as_text()
    assert evaluation.count("stablehlo.dot_general") == 1
    assert training.count("stablehlo.dot_general") == 3


@pytest.mark.parametrize("data", [1, 4])
def test_bfloat16_gradients_of_confident_tokens_do_not_cancel(mesh_of, data):
    """A token known to 0.98: its gradient is the small difference of two large terms."""
    rng = np.random.default_rng(0)
    table_vd = rng.standard_normal((64, 32)).astype(np.float32) * 0.2
    targets_bt = rng.integers(0, 64, (4, 8)).astype(np.int32)
    states_btd = table_vd[targets_bt] * 6.0
    weights_bt = np.ones((4, 8), np.float32)
    targets = Targets(hard_bt=targets_bt)

    def gradient(dtype):
        def loss(states_btd, *others):
            return vocabulary_loss(states_btd.astype(dtype), *others, LossTerms(chunk=8))[0]

        with mesh_of(data=data):
            placed = in_place((states_btd, table_vd, targets, weights_bt))
            return np.asarray(jax.jit(jax.grad(loss))(*placed), np.float64)

    exact, found = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert np.linalg.norm(found - exact) < 2e-2 * np.linalg.norm(exact)
