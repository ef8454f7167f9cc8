"""The next-token loss without the logits: token chunks, split vocabulary, gradients in the forward.

A [tokens, vocabulary] array never exists: a scan takes chunks of tokens, computes their logits
against this device's rows of the table, and at once the loss and both gradients, 6NDV operations
against 8NDV with recomputation. The backward pass only scales them. Evaluation runs the forward
part alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemma_train.axes import MESH_AXES, activation
from gemma_train.zero3 import axes_of


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What the loss of a token is made of, and how many are computed at a time."""

    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator
    soft_cap: float | None = None  # cap * tanh(logits / cap) (Gemma 2)
    chunk: int = 1024  # tokens of each device whose logits exist at one time
    temperature: float = 1.0  # of soft targets: divides the logits
    student: Literal["full", "candidates"] = "full"  # tokens that the softmax runs over


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the tokens are to predict: one token each or, where there are candidates, these."""

    hard_bt: jax.Array  # int32: the text's own next token
    candidates_btq: jax.Array | None = None  # int32; equal ones add up
    probabilities_btq: jax.Array | None = None  # float32; they need not sum to 1


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def vocabulary_loss(
    states_btd: jax.Array,
    table_vd: jax.Array,
    targets: Targets,
    weights_bt: jax.Array,
    terms: LossTerms,
) -> tuple[jax.Array, jax.Array]:
    """(loss, cross-entropy): sums over tokens of weight * value, float32 scalars.

    The first carries the z-loss and is differentiable in states and table; the second is a
    figure. Weights of tokens without loss are 0; put 1 / (number of tokens) in them for a mean.
    `table_vd` comes as it is stored, split by `zero3.split`; matmuls run in the states' dtype.
    """
    sums, _ = _run(states_btd, table_vd, targets.hard_bt, weights_bt, terms, with_gradients=False)
    return sums


def _forward(states_btd, table_vd, targets, weights_bt, terms):
    return _run(states_btd, table_vd, targets.hard_bt, weights_bt, terms, with_gradients=True)


def _backward(terms, gradients, cotangents):
    states_btd, table_vd = gradients
    scale = cotangents[0]
    return (states_btd * scale.astype(states_btd.dtype), table_vd * scale, None, None)


vocabulary_loss.defvjp(_forward, _backward)


def _run(states_btd, table_vd, targets_bt, weights_bt, terms, *, with_gradients):
    """Sums and gradients, each device on its tokens and its rows of the table."""
    rows, columns = axes_of(table_vd)
    shard = partial(
        _on_one_shard, terms=terms, rows=rows, columns=columns, with_gradients=with_gradients
    )
    table_spec = jax.typeof(table_vd).sharding.spec
    specs = (activation("btd"), table_spec, activation("bt"), activation("bt"))
    gradient_specs = (activation("btd"), table_spec) if with_gradients else None
    return jax.shard_map(
        shard,
        in_specs=specs,
        out_specs=((PartitionSpec(), PartitionSpec()), gradient_specs),
        check_vma=False,
    )(states_btd, table_vd, targets_bt, weights_bt)


def _on_one_shard(
    states_btd, table_vd, targets_bt, weights_bt, *, terms, rows, columns, with_gradients
):
    """A scan over chunks of this device's tokens.

    Devices that share the rows axes hold different rows of the table: they work on each other's
    tokens, chunk by chunk.
    """
    dtype, width = states_btd.dtype, states_btd.shape[-1]
    table_vd = table_vd.astype(dtype)
    for axis in reversed(columns):
        table_vd = jax.lax.all_gather(table_vd, axis, axis=1, tiled=True)
    first_row = jax.lax.axis_index(tuple(rows)) * table_vd.shape[0] if rows else 0

    tokens = targets_bt.size
    chunk = min(terms.chunk, tokens)
    fill = -tokens % chunk

    def chunks(x: jax.Array) -> jax.Array:
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, ((0, fill), *((0, 0),) * (flat.ndim - 1)))
        return flat.reshape(-1, chunk, *flat.shape[1:])

    # In bfloat16 a confident token's numerator and its target would round apart and not cancel.
    apart = not rows and dtype == jnp.float32

    def body(carry, one):
        sums, gradient_dv = carry
        states_cd, targets_c, weights_c = (_gathered(x, rows) for x in one)
        chunk_sums, powers_cv, scale_c, pull_c = _chunk(
            states_cd, table_vd, targets_c - first_row, weights_c, terms, rows, apart
        )
        sums = jax.tree.map(jnp.add, sums, chunk_sums)
        if not with_gradients:
            return (sums, gradient_dv), None
        scaled_cd = (states_cd * scale_c[:, None]).astype(dtype)
        gradient_dv += jnp.einsum(
            "cd,cv->dv", scaled_cd, powers_cv, preferred_element_type=jnp.float32
        )
        gradient_cd = jnp.einsum("cv,vd->cd", powers_cv, table_vd) * scale_c[:, None]
        return (sums, gradient_dv), (_scattered(gradient_cd.astype(dtype), rows), pull_c)

    zero = jnp.zeros((), jnp.float32)
    empty_dv = jnp.zeros(table_vd.shape[::-1], jnp.float32) if with_gradients else None
    (sums, gradient_dv), found = jax.lax.scan(
        body, ((zero, zero), empty_dv), (chunks(states_btd), chunks(targets_bt), chunks(weights_bt))
    )
    whole_axes = tuple(axis for axis in MESH_AXES if axis not in rows)
    sums = jax.tree.map(lambda x: jax.lax.psum(x, whole_axes), sums)
    if found is None or gradient_dv is None:
        return sums, None
    gradient_td, gradient_vd = found[0].reshape(-1, width)[:tokens], gradient_dv.T
    if apart:
        pull_t, targets_t = found[1].reshape(-1, 1)[:tokens], targets_bt.reshape(-1)
        gradient_td -= pull_t * table_vd[targets_t]
        gradient_vd = gradient_vd.at[targets_t].add(-pull_t * states_btd.reshape(-1, width))
    gradient_vd = _reduced(gradient_vd, dtype, rows, columns)
    return sums, (gradient_td.reshape(states_btd.shape), gradient_vd)


def _chunk(states_cd, table_vd, targets_c, weights_c, terms, rows, apart):
    """(sums, powers [c, v], scale [c], pull [c]): the gradient by the logits is powers * scale,
    less pull at the target.

    With `apart` the pull is for the caller to take, row by row, and `powers` is the softmax's
    numerator as it comes: one pass over [c, v] less. Otherwise `powers` is the whole gradient.
    `targets_c` counts from this device's first row: a target elsewhere is out of range.
    """
    logits_cv = jnp.einsum("cd,vd->cv", states_cd, table_vd, preferred_element_type=jnp.float32)
    slope_cv = 1.0
    if terms.soft_cap is not None:
        tanh_cv = jnp.tanh(logits_cv / terms.soft_cap)
        logits_cv, slope_cv = terms.soft_cap * tanh_cv, 1.0 - jnp.square(tanh_cv)
    peak_c = jnp.max(logits_cv, axis=1)
    if rows:
        peak_c = jax.lax.pmax(peak_c, tuple(rows))
    if not apart:
        is_target_cv = jax.lax.broadcasted_iota(jnp.int32, logits_cv.shape, 1) == targets_c[:, None]
        target_c = jnp.sum(jnp.where(is_target_cv, logits_cv, 0.0), axis=1)
    else:
        target_c = jnp.take_along_axis(logits_cv, targets_c[:, None], axis=1)[:, 0]
    powers_cv = jnp.exp(logits_cv - peak_c[:, None])
    denominator_c = jnp.sum(powers_cv, axis=1)
    if rows:
        denominator_c, target_c = jax.lax.psum((denominator_c, target_c), tuple(rows))
    normalizer_c = jnp.log(denominator_c) + peak_c
    cross_entropy = jnp.sum(weights_c * (normalizer_c - target_c))
    loss = cross_entropy + terms.z_loss * jnp.sum(weights_c * jnp.square(normalizer_c))
    scale_c = weights_c * (1.0 + 2.0 * terms.z_loss * normalizer_c) / denominator_c
    pull_c = weights_c
    if terms.soft_cap is not None:
        pull_c *= 1.0 - jnp.square(target_c / terms.soft_cap)
    if not apart:
        powers_cv = powers_cv * scale_c[:, None] - jnp.where(is_target_cv, weights_c[:, None], 0.0)
        scale_c = jnp.ones_like(scale_c)
    return (loss, cross_entropy), (powers_cv * slope_cv).astype(states_cd.dtype), scale_c, pull_c


def _gathered(x, rows):
    """A chunk of every device along the rows axes, one after the other."""
    for axis in reversed(rows):
        x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
    return x


def _scattered(x, rows):
    """The transpose of `_gathered`: sums over the rows axes, each device keeping its own chunk."""
    for axis in rows:
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=0, tiled=True)
    return x


def _reduced(gradient_vd, dtype, rows, columns):
    """The table's gradient on its shard: scattered in the compute dtype, then summed in float32."""
    gradient_vd = gradient_vd.astype(dtype)
    for axis in columns:
        # The devices as a dimension in front: as zero3 says, else TPUs would sum all of it.
        parts = gradient_vd.reshape(gradient_vd.shape[0], jax.lax.axis_size(axis), -1)
        parts = jnp.moveaxis(parts, 1, 0)
        gradient_vd = jax.lax.psum_scatter(parts, axis, scatter_dimension=0, tiled=False)
    others = tuple(axis for axis in MESH_AXES if axis not in (*rows, *columns))
    return jax.lax.psum(gradient_vd.astype(jnp.float32), others)
