"""What the vocabulary loss is held to: autodiff of the loss from all the logits, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.kernels.vocabulary.loss import vocabulary_loss
from gemma_train.kernels.vocabulary.terms import Targets
from gemma_train.zero3 import split
from tests.tolerances import assert_close

ROWS, LENGTH = 8, 12
# What the loss is multiplied by after the kernel, so that its backward pass has work to do: a
# power of two, by which nothing is rounded once more.
OUTER = 4.0


def states_and_table(random, width: int, vocabulary: int, *, largest: float = 6.0):
    """Whose largest logit is this."""
    states = random.normal(size=(ROWS, LENGTH, width))
    table = random.normal(size=(vocabulary, width))
    return states * (largest / np.abs(np.einsum("btd,vd->btv", states, table)).max()), table


def token_weights(random) -> np.ndarray:
    """A third of the tokens carry no loss."""
    weights = np.float32(random.uniform(0.5, 1.5, (ROWS, LENGTH)) / (ROWS * LENGTH))
    weights[random.random(weights.shape) < 1 / 3] = 0.0
    return weights


def rounded(x, dtype) -> np.ndarray:
    """To values that the compute dtype can hold, so that only the arithmetic differs."""
    return np.asarray(jnp.asarray(x, dtype), np.float32)


def dense_target(targets: Targets, vocabulary: int) -> np.ndarray:
    """The target as an array [b, t, v]; ids outside the vocabulary have no place in it."""
    found = np.zeros((ROWS, LENGTH, vocabulary), np.float32)
    b, t = np.indices((ROWS, LENGTH))
    if targets.candidates_btq is not None:
        ids = targets.candidates_btq
        inside = (ids >= 0) & (ids < vocabulary)
        places = b[..., None], t[..., None], np.where(inside, ids, 0)
        np.add.at(found, places, np.where(inside, targets.probabilities_btq, 0.0))
    hard_weights = 1.0 if targets.is_hard else targets.hard_weights_bt
    if hard_weights is not None:
        np.add.at(found, (b, t, targets.hard_bt), hard_weights)
    return found


def naive(states, table, target, hard, weights, terms):
    """(loss, cross-entropy) from all the logits at once, in float32."""
    logits = jnp.einsum("btd,vd->btv", states, table, precision="highest")
    if terms.soft_cap is not None:
        logits = terms.soft_cap * jnp.tanh(logits / terms.soft_cap)
    hard_logit = jnp.take_along_axis(logits, hard[..., None], axis=-1)[..., 0]
    cross_entropy = jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - hard_logit))
    logits /= terms.temperature
    seen, silent = jnp.ones_like(target, bool), jnp.sum(target, axis=-1, keepdims=True) == 0
    weights = jnp.where(silent[..., 0], 0.0, weights)
    if terms.student == "candidates":
        seen = (target > 0) | silent
    normalizer = jax.nn.logsumexp(logits, axis=-1, where=seen)
    loss = jnp.sum(target, -1) * normalizer - jnp.sum(target * logits, -1)
    return jnp.sum(weights * (loss + terms.z_loss * normalizer**2)), cross_entropy


def with_gradients(loss):
    """(loss, cross-entropy, gradient by states, gradient by table) of OUTER * loss."""

    def run(states, table, targets, weights, terms):
        def scaled(states, table):
            value, cross_entropy = loss(states, table, targets, weights, terms)
            return OUTER * value, cross_entropy

        values, gradients = jax.value_and_grad(scaled, (0, 1), has_aux=True)(states, table)
        return (*values, *gradients)

    return jax.jit(run, static_argnums=4)


def expected(arrays, terms):
    """What `with_gradients` gives of the naive loss."""
    states, table, targets, weights = arrays
    target = dense_target(targets, len(table))

    def loss(states, table, hard, weights, terms):
        return naive(states, table, target, hard, weights, terms)

    return with_gradients(loss)(states, table, targets.hard_bt, weights, terms)


def in_place(arrays, dtype=jnp.float32, *, whole: bool = False):
    """States, table and what comes with the tokens, where a run holds them.

    States in the compute dtype, the table in float32; split, or whole on every device.
    """
    states, table, *others = arrays
    mesh = jax.sharding.get_mesh()

    def put(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    table_spec = activation("vd") if whole else split("vd", table.shape, mesh.shape)
    others = jax.tree.map(lambda x: put(x, activation("bt" if x.ndim == 2 else "btq")), others)
    return put(jnp.asarray(states, dtype), activation("btd")), put(table, table_spec), *others


def check(arrays, terms, tolerance="fp32"):
    """The kernel's loss and gradients, in bfloat16 if that is the tolerance, are autodiff's."""
    dtype = jnp.bfloat16 if tolerance == "bf16" else jnp.float32
    placed = in_place(arrays, dtype)
    found, wanted = with_gradients(vocabulary_loss)(*placed, terms), expected(arrays, terms)
    assert (found[2].dtype, found[3].dtype) == (dtype, jnp.float32)
    assert found[3].sharding.spec == placed[1].sharding.spec
    names = ("loss", "cross-entropy", "gradient by states", "gradient by table")
    for name, one, other in zip(names, found, wanted, strict=True):
        assert_close(np.float32(one), other, tolerance, name)
    without = jax.jit(vocabulary_loss, static_argnums=4)(*placed, terms)
    for one, other, factor in zip(without, wanted, (OUTER, 1.0), strict=False):
        assert_close(one * factor, other, tolerance, "without gradients")
