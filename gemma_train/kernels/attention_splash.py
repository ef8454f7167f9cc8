"""Attention on TPU: jax's splash kernel, which never has a [t, s] array and skips unseen blocks.

The window is one of indices: within a segment positions are consecutive, so it is the same. The
backward pass runs as two kernels: fused, dq has partial sums that grow as t squared (2,242 MB
against 169 MB at 32,768 tokens on v5p).
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from gemma_train.errors import require
from gemma_train.kernels.attention_mask import AttentionMask

LANES = 128  # rows of keys that a TPU's vector unit takes: blocks are multiples of it
BLOCK = 1024  # queries, and keys, of a block; larger ones overflow v5e's vector memory
COMPUTED = 512  # keys of a block that are multiplied at one time


def attend(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    *,
    kept_as: str,
    halo: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """[b, t, n, h] weighted values of this shard's queries.

    Keys are those of all shards along seq, or one's own behind the last `halo` of the left
    neighbour. Exact where positions are consecutive within segments. What the backward pass reads
    of the result is named `kept_as`. `interpret` runs the kernel's own steps on a CPU. Raises
    `UserError` for a length that blocks do not divide.
    """
    length, keys, heads = query_btnh.shape[1], key_bskh.shape[1], query_btnh.shape[2]
    kernel = _tables(length, keys, heads, halo, mask.window, soft_cap, kept_as, interpret)
    if keys > length + halo:
        kernel = _of_this_shard(kernel, keys // length)

    @jax.vmap
    def rows(query_nth, key_ksh, value_ksh, query_segments_t, key_segments_s):
        segments = splash.SegmentIds(q=query_segments_t, kv=key_segments_s)
        return kernel(query_nth, key_ksh, value_ksh, segment_ids=segments)

    def heads_first(x_btnh: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_btnh, 1, 2)

    output_bnth = rows(
        heads_first(query_btnh),
        heads_first(key_bskh),
        heads_first(value_bskh),
        mask.query_segments_bt,
        mask.key_segments_bs,
    )
    return heads_first(output_bnth)


def reach(window: int | None) -> int | None:
    """How many keys to the left of a shard its queries can see, in whole lanes; None for all."""
    return None if window is None else max(-(-(window - 1) // LANES), 1) * LANES


@cache
def _tables(
    length: int,
    keys: int,
    heads: int,
    halo: int,
    window: int | None,
    soft_cap: float | None,
    kept_as: str,
    interpret: bool,
) -> splash.SplashAttentionKernel:
    """The kernel with its tables of blocks to visit, for every shard of `length` queries.

    Building them takes seconds at 32,768 tokens: one kernel serves all layers of a kind.
    """
    require(
        length % LANES == 0,
        f"{length} tokens of a row on each device: on TPU attention needs a multiple of {LANES} "
        "(data.sequence_length / mesh.seq), or compute.attention 'xla'",
    )
    shards = (keys - halo) // length
    shape = (shards * length, keys)
    seen = (
        masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), halo)
    )
    sizes = _block_sizes(length, keys)
    process = partial(_process, masks.MultiHeadMask([seen] * heads), sizes, shards)
    forward, mask_function = process(mask_info.process_mask)
    by_key, _ = process(mask_info.process_mask_dkv)
    return splash.SplashAttentionKernel(
        forward,
        forward,  # the kernel of dq visits the same blocks
        by_key,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=kept_as,
        mask_function=mask_function,
        interpret=interpret,
    )


def _block_sizes(length: int, keys: int) -> splash.BlockSizes:
    """The same blocks for all three kernels: of `length` queries and of so many keys."""
    block_q, block_kv = _block(length, BLOCK), _block(keys, BLOCK)
    computed = _block(block_kv, COMPUTED)
    return splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=computed,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=computed,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
        use_fused_bwd_kernel=False,
    )


def _process(seen, sizes: splash.BlockSizes, shards: int, by: Callable) -> tuple:
    """Tables in NumPy: jax's own constructor would put them on the mesh in force."""
    return by(seen, (sizes.block_q, sizes.block_kv), head_shards=1, q_seq_shards=shards)


def _block(length: int, most: int) -> int:
    """The longest block of whole lanes, at most `most`, that divides `length`."""
    return max(size for size in range(LANES, min(most, length) + 1, LANES) if length % size == 0)


def _of_this_shard(
    tables: splash.SplashAttentionKernel, shards: int
) -> splash.SplashAttentionKernel:
    """The part of the tables for the queries that this device holds: they lie one after another."""
    here = jax.lax.axis_index("seq")

    def part(table: np.ndarray) -> jax.Array:
        axis = 1 if table.ndim == 3 else 0  # [heads, blocks of queries, ...] or [queries]
        size = table.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), here * size, size, axis)

    return jax.tree.map(part, tables)
