"""Which blocks of keys each block of queries visits on TPU: the tables of the splash kernel.

One kernel serves all layers of a kind, and its tables are made once. Where a sequence is split,
they hold every shard's queries, one shard behind the other.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from gemma_train.errors import require
from gemma_train.kernels.attention.along_seq import mirrored_halves

LANES = 128  # rows of keys that a TPU's vector unit takes: blocks are multiples of it
BLOCK = 1024  # queries, and keys, of a block; larger ones overflow v5e's vector memory
COMPUTED = 512  # keys of a block that are multiplied at one time


def reach(window: int) -> int:
    """How many keys to the left of a shard its queries can see, in whole lanes."""
    return max(-(-(window - 1) // LANES), 1) * LANES


def is_mirrored(length: int, shards: int) -> bool:
    """Whether shards of so many queries swap halves: those are whole lanes."""
    return shards > 1 and length % (2 * LANES) == 0


@cache
def kernel_near(
    length: int, first_query: int, heads: int, window: int, **options
) -> splash.SplashAttentionKernel:
    """The kernel of queries that stand at keys first_query, first_query + 1, ...; no later key."""
    _check(length)
    places = first_query + np.arange(length, dtype=np.int32)
    seen = _Seen(places, first_query + length, window)
    return _kernel(seen, heads, 1, _block(length, BLOCK), **options)


@cache
def kernel_to_all(length: int, shards: int, heads: int, **options) -> splash.SplashAttentionKernel:
    """The kernel of the queries of every shard, in the order of `along_seq.mirrored` where they
    are; no later key."""
    _check(length)
    places, part = np.arange(shards * length, dtype=np.int32), length
    if is_mirrored(length, shards):
        part = length // 2
        order = [half for shard in range(shards) for half in mirrored_halves(shard, shards)]
        places = places.reshape(-1, part)[order].ravel()
    return _kernel(
        _Seen(places, shards * length, None), heads, shards, _block(part, BLOCK), **options
    )


def of_this_shard(
    kernel: splash.SplashAttentionKernel, shards: int
) -> splash.SplashAttentionKernel:
    """The kernel with the part of its tables for the queries that this device holds."""
    here = jax.lax.axis_index("seq")

    def part(table: np.ndarray) -> jax.Array:
        axis = 1 if table.ndim == 3 else 0  # [heads, blocks of queries, ...] or [queries]
        size = table.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), here * size, size, axis)

    return jax.tree.map(part, kernel)


def _check(length: int) -> None:
    require(
        length % LANES == 0,
        f"{length} tokens of a row on each device: on TPU attention needs a multiple of {LANES} "
        "(data.sequence_length / mesh.seq), or compute.attention 'xla'",
    )


class _Seen(masks.Mask):
    """A query sees no later key and, in a window, none that is too far: by the places of both.

    Blocks that are seen whole, or not at all, are told by one value: tables of 131,072 tokens would
    otherwise compare 17 thousand million pairs.
    """

    def __init__(self, q_sequence: np.ndarray, keys: int, window: int | None):
        self.q_sequence, self._keys, self._window = q_sequence, keys, window

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q_sequence), self._keys

    def mask_function(self, queries, keys):
        """Of places: in NumPy for the tables, and in the kernel itself."""
        seen = queries >= keys
        return seen if self._window is None else seen & (queries - (self._window - 1) <= keys)

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        queries, keys = self.q_sequence[block[0]], np.arange(block[1].start, block[1].stop)
        least, most = queries.min() - keys[-1], queries.max() - keys[0]  # distances
        if most < 0 or (self._window and least >= self._window):
            return np.zeros((1, 1), bool)
        if least >= 0 and (not self._window or most < self._window):
            return np.ones((1, 1), bool)
        return self.mask_function(queries[:, None], keys[None, :])


def _kernel(
    seen: _Seen,
    heads: int,
    shards: int,
    block: int,
    *,
    soft_cap: float | None,
    kept_as: str,
    interpret: bool,
) -> splash.SplashAttentionKernel:
    sizes = _block_sizes(block, seen.shape[1])
    of_heads = masks.MultiHeadMask([seen] * heads)

    def process(by: Callable) -> tuple:
        """Tables in NumPy: jax's own constructor would put them on the mesh in force."""
        blocks = (sizes.block_q, sizes.block_kv)
        return by(of_heads, blocks, head_shards=1, q_seq_shards=shards)

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


def _block_sizes(block_q: int, keys: int) -> splash.BlockSizes:
    """The same blocks for all three kernels; of keys, what is multiplied at one time counts first.

    2,560 keys, of a shard of 1B and its halo, go in blocks of 512 then, not of 640 in parts of 128.
    """
    computed = _block(keys, min(COMPUTED, BLOCK))
    block_kv = _block(keys, BLOCK, of=computed)
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


def _block(length: int, most: int, of: int = LANES) -> int:
    """The longest block of whole `of`, at most `most`, that divides `length`."""
    return max(size for size in range(of, min(most, length) + 1, of) if length % size == 0)
