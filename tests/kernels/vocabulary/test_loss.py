"""The loss without logits against autodiff of the loss with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
from gemma_train.zero3 import axes_of, split
from tests.tolerances import assert_close

ROWS, LENGTH, VOCABULARY = 8, 12, 40
# What the loss is multiplied by after the kernel, so that its backward pass has work to do.
OUTER = 3.0


def naive(states, table, targets, weights, terms):
    """(loss, cross-entropy) from all the logits at once, in float32."""
    logits = jnp.einsum("btd,vd->btv", states, table, precision="highest")
    if terms.soft_cap is not None:
        logits = terms.soft_cap * jnp.tanh(logits / terms.soft_cap)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    cross_entropy = jnp.sum(weights * (normalizer - target))
    return cross_entropy + terms.z_loss * jnp.sum(weights * normalizer**2), cross_entropy


def sample(width: int, dtype=jnp.float32, largest: float = 6.0, rows: int = ROWS):
    """States, table, targets and weights; a third of the tokens carry no loss."""
    random = np.random.default_rng(width)
    states = random.normal(size=(rows, LENGTH, width))
    table = random.normal(size=(VOCABULARY, width))
    states *= largest / np.abs(np.einsum("btd,vd->btv", states, table)).max()
    targets = random.integers(0, VOCABULARY, (rows, LENGTH), dtype=np.int32)
    weights = np.float32(random.uniform(0.5, 1.5, (rows, LENGTH)) / targets.size)
    weights[random.random(weights.shape) < 1 / 3] = 0.0
    # Values that the compute dtype can hold, so that only the arithmetic differs.
    states, table = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in (states, table))
    return states, table, targets, weights


def hard_loss(states, table, targets, weights, terms):
    return vocabulary_loss(states, table, Targets(hard_bt=targets), weights, terms)


def with_gradients(loss):
    """(loss, cross-entropy, gradient by states, gradient by table) of OUTER * loss."""

    def run(states, table, targets, weights, terms):
        def scaled(states, table):
            value, cross_entropy = loss(states, table, targets, weights, terms)
            return OUTER * value, cross_entropy

        values, gradients = jax.value_and_grad(scaled, (0, 1), has_aux=True)(states, table)
        return (*values, *gradients)

    return jax.jit(run, static_argnums=4)


def place(arrays, dtype=jnp.float32):
    """The arrays where a run holds them; states in the compute dtype, the table in float32."""
    states, table, targets, weights = arrays
    mesh = jax.sharding.get_mesh()
    specs = activation("btd"), split("vd", table.shape, mesh.shape), *(activation("bt"),) * 2
    cast = (jnp.asarray(states, dtype), table, targets, weights)
    return [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(cast, specs, strict=True)]


def check(arrays, terms, tolerance="fp32", dtype=jnp.float32):
    placed = place(arrays, dtype)
    found = with_gradients(hard_loss)(*placed, terms)
    assert found[2].dtype == dtype
    assert found[3].dtype == jnp.float32
    assert found[3].sharding.spec == placed[1].sharding.spec
    expected = with_gradients(naive)(*arrays, terms)
    names = ("loss", "cross-entropy", "gradient by states", "gradient by table")
    for name, one, other in zip(names, found, expected, strict=True):
        assert_close(np.asarray(one, np.float32), other, tolerance, name)
    without = jax.jit(hard_loss, static_argnums=4)(*placed, terms)
    for one, other, factor in zip(without, expected, (OUTER, 1.0), strict=False):
        assert_close(one * factor, other, tolerance, "without gradients")


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
        assert axes_of(place(arrays)[1]) == [rows, columns]
        check(arrays, TERMS[terms])


@pytest.mark.parametrize(("mesh", "width"), [((1, 1, 1), 12), ((1, 4, 2), 7)])
def test_large_logits_stay_finite(mesh, width, mesh_of):
    with mesh_of(*mesh):
        for largest in (80.0, 400.0):
            check(sample(width, largest=largest), LossTerms(chunk=32))


@pytest.mark.parametrize(("mesh", "width"), [((1, 1, 1), 12), ((2, 2, 2), 12)])
def test_in_bfloat16_it_stays_near_the_naive_loss(mesh, width, mesh_of):
    with mesh_of(*mesh):
        check(sample(width, jnp.bfloat16), TERMS["all together"], "bf16", jnp.bfloat16)


def test_without_any_loss_everything_is_zero(mesh_of):
    states, table, targets, weights = sample(12)
    with mesh_of():
        arrays = place((states, table, targets, 0 * weights))
        for array in with_gradients(hard_loss)(*arrays, LossTerms(z_loss=0.1, chunk=32)):
            assert not np.asarray(array).any()


def test_no_array_of_tokens_by_vocabulary_is_ever_held(mesh_of, largest_arrays):
    def largest(chunk: int) -> int:
        arguments = (*place(sample(12)), LossTerms(chunk=chunk))
        program = with_gradients(hard_loss).lower(*arguments).compile().as_text()
        return max(np.prod(shape) for shape in largest_arrays(program))

    with mesh_of():
        assert largest(chunk=ROWS * LENGTH) >= ROWS * LENGTH * VOCABULARY
        # What is left is the states, which come as an argument.
        assert largest(chunk=8) == ROWS * LENGTH * 12


def test_evaluation_computes_no_gradient(mesh_of):
    terms = LossTerms(chunk=32)
    with mesh_of():
        arrays = place(sample(12))
        evaluation = jax.jit(hard_loss, static_argnums=4).lower(*arrays, terms).as_text()
        training = with_gradients(hard_loss).lower(*arrays, terms).as_text()
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

    def gradient(dtype):
        def loss(states_btd):
            return hard_loss(
                states_btd.astype(dtype), placed[1], placed[2], placed[3], LossTerms(chunk=8)
            )[0]

        with mesh_of(data=data):
            mesh = jax.sharding.get_mesh()
            specs = (
                activation("btd"),
                split("vd", table_vd.shape, mesh.shape),
                activation("bt"),
                activation("bt"),
            )
            arrays = (states_btd, table_vd, targets_bt, weights_bt)
            placed = [
                jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
                for x, spec in zip(arrays, specs, strict=True)
            ]
            return np.asarray(jax.jit(jax.grad(loss))(placed[0]), np.float64)

    exact, found = gradient(jnp.float32), gradient(jnp.bfloat16)
    assert np.linalg.norm(found - exact) < 2e-2 * np.linalg.norm(exact)
