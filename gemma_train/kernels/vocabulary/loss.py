"""The loss over the vocabulary without the logits: token chunks, gradients in the forward.

A [tokens, vocabulary] array never exists: a scan takes chunks of tokens, computes their logits
against this device's rows of the table, and at once the loss and both gradients, 6NDV operations
against 8NDV with recomputation; a distribution as target costs the products of soft_target.py
besides. The backward pass only scales them. Evaluation runs the forward part alone.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemma_train.axes import MESH_AXES, activation
from gemma_train.kernels.vocabulary.chunk import Chunk, hard_chunk, soft_chunk
from gemma_train.kernels.vocabulary.soft_target import sent
from gemma_train.kernels.vocabulary.split import chunks, first_row, gathered, scattered, whole_rows
from gemma_train.kernels.vocabulary.terms import LossTerms, Targets
from gemma_train.zero3 import axes_of

__all__ = ["LossTerms", "Targets", "vocabulary_loss"]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def vocabulary_loss(
    states_btd: jax.Array,
    table_vd: jax.Array,
    targets: Targets,
    weights_bt: jax.Array,
    terms: LossTerms,
) -> tuple[jax.Array, jax.Array]:
    """(loss, cross-entropy): sums over tokens of weight * value, float32 scalars.

    The loss of a token is w * lse(z / T) - sum of p * z / T + z_loss * lse^2, of logits z, target
    p, its sum w, and temperature T, and 0 where w is; it is differentiable in states and table. The
    second is a figure, always of the text's own token, over the whole vocabulary, at temperature 1.
    Weights of tokens without loss are 0; put 1 / (number of tokens) in them for a mean. `table_vd`
    comes as it is stored, split by `zero3.split`; matmuls run in the states' dtype.
    """
    sums, _ = _run(states_btd, table_vd, targets, weights_bt, terms, with_gradients=False)
    return sums


def _forward(states_btd, table_vd, targets, weights_bt, terms):
    return _run(states_btd, table_vd, targets, weights_bt, terms, with_gradients=True)


def _backward(terms, gradients, cotangents):
    states_btd, table_vd = gradients
    scale = cotangents[0]
    scaled_btd = (states_btd * scale.astype(jnp.float32)).astype(states_btd.dtype)
    return (scaled_btd, table_vd * scale, None, None)


vocabulary_loss.defvjp(_forward, _backward)


def _run(states_btd, table_vd, targets, weights_bt, terms, *, with_gradients):
    """Sums and gradients, each device on its tokens and its rows of the table."""
    rows, columns = axes_of(table_vd)
    shard = partial(
        _on_one_shard, terms=terms, rows=rows, columns=columns, with_gradients=with_gradients
    )
    table_spec = jax.typeof(table_vd).sharding.spec
    of_targets = jax.tree.map(lambda x: activation("bt" if x.ndim == 2 else "btq"), targets)
    specs = (activation("btd"), table_spec, of_targets, activation("bt"))
    gradient_specs = (activation("btd"), table_spec) if with_gradients else None
    return jax.shard_map(
        shard,
        in_specs=specs,
        out_specs=((PartitionSpec(), PartitionSpec()), gradient_specs),
        check_vma=False,
    )(states_btd, table_vd, targets, weights_bt)


def _on_one_shard(
    states_btd, table_vd, targets, weights_bt, *, terms, rows, columns, with_gradients
):
    """A scan over chunks of this device's tokens.

    Devices that share the rows axes hold different rows of the table: they work on each other's
    tokens, chunk by chunk.
    """
    dtype, width, tokens = states_btd.dtype, states_btd.shape[-1], weights_bt.size
    table_vd = whole_rows(table_vd.astype(dtype), columns)
    # In bfloat16 a confident token's numerator and its target would round apart and not cancel.
    apart = targets.is_hard and not rows and dtype == jnp.float32
    chunk_of = _chunk_function(table_vd, targets, terms, rows, apart)

    def body(carry, one):
        sums, gradient_dv = carry
        states_cd, targets_c, weights_c = jax.tree.map(lambda x: gathered(x, rows), one)
        chunk = chunk_of(states_cd, targets_c, weights_c)
        sums = jax.tree.map(jnp.add, sums, chunk.sums)
        if not with_gradients:
            return (sums, gradient_dv), None
        powers_cv, scale_c = chunk.powers_cv, chunk.scale_c
        scaled_cd = (states_cd * scale_c[:, None]).astype(dtype)
        gradient_dv += jnp.einsum(
            "cd,cv->dv", scaled_cd, powers_cv, preferred_element_type=jnp.float32
        )
        gradient_cd = scale_c[:, None] * jnp.einsum(
            "cv,vd->cd", powers_cv, table_vd, preferred_element_type=jnp.float32
        )
        return (sums, gradient_dv), (scattered(gradient_cd.astype(dtype), rows), chunk.pull_c)

    zero = jnp.zeros((), jnp.float32)
    empty_dv = jnp.zeros(table_vd.shape[::-1], jnp.float32) if with_gradients else None
    inputs = chunks((states_btd, sent(targets, terms, dtype), weights_bt), terms.chunk)
    (sums, gradient_dv), found = jax.lax.scan(body, ((zero, zero), empty_dv), inputs)
    whole_axes = tuple(axis for axis in MESH_AXES if axis not in rows)
    sums = jax.tree.map(lambda x: jax.lax.psum(x, whole_axes), sums)
    if found is None or gradient_dv is None:
        return sums, None
    gradient_td, gradient_vd = found[0].reshape(-1, width)[:tokens], gradient_dv.T
    if apart and (pull := found[1]) is not None:
        pull_t, targets_t = pull.reshape(-1, 1)[:tokens], targets.hard_bt.reshape(-1)
        gradient_td -= pull_t * table_vd[targets_t]
        gradient_vd = gradient_vd.at[targets_t].add(-pull_t * states_btd.reshape(-1, width))
    gradient_vd = _reduced(gradient_vd, dtype, rows, columns)
    return sums, (gradient_td.reshape(states_btd.shape), gradient_vd)


def _chunk_function(
    table_vd: jax.Array, targets: Targets, terms: LossTerms, rows: list[str], apart: bool
) -> Callable[..., Chunk]:
    """What makes a `Chunk` of (states, targets, weights) of a chunk: ids counted from row 0."""
    first = first_row(table_vd, rows)

    def chunk_of(states_cd, targets_c, weights_c):
        here = targets_c.of_chunk(first)
        if not targets.is_hard:
            return soft_chunk(states_cd, table_vd, here, weights_c, terms, rows)
        return hard_chunk(states_cd, table_vd, here.hard_c, weights_c, terms, rows, apart=apart)

    return chunk_of


def _reduced(gradient_vd, dtype, rows, columns):
    """The table's gradient on its shard, float32; where it is scattered, in the compute dtype."""
    if columns:
        gradient_vd = gradient_vd.astype(dtype)
    for axis in columns:
        # The devices as a dimension in front: as zero3 says, else TPUs would sum all of it.
        parts = gradient_vd.reshape(gradient_vd.shape[0], jax.lax.axis_size(axis), -1)
        parts = jnp.moveaxis(parts, 1, 0)
        gradient_vd = jax.lax.psum_scatter(parts, axis, scatter_dimension=0, tiled=False)
    others = tuple(axis for axis in MESH_AXES if axis not in (*rows, *columns))
    return jax.lax.psum(gradient_vd.astype(jnp.float32), others)
