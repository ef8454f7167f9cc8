"""Local attention in O(t * window) in plain XLA: a block of queries sees itself and its left.

Rows are cut into blocks of `window` tokens; a query of a block can only see keys of that block and
of the one before it, so 2 * window scores a query are computed instead of t. Where there are
images, a soft token may see the first keys of the block behind it too, as far as an image goes.
"""

import jax
import jax.numpy as jnp

from gemma_train.kernels import attention_reference
from gemma_train.kernels.attention_mask import AttentionMask, allowed

# The segment of keys that pad a row: no query has it.
NOWHERE = -1
TEXT = -1  # the image of a token that is none's


def attend(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    first_query: jax.Array | int = 0,
) -> jax.Array:
    """[b, t, n, h] weighted values of queries that stand at keys first_query, first_query + 1, ...

    Exact where positions are consecutive within segments. `mask.window` must be set.
    """
    window, (batch, length) = mask.window, query_btnh.shape[:2]
    assert window is not None
    blocks = -(-length // window)
    fill = blocks * window - length
    behind = 0 if mask.query_images_bt is None else min(mask.image_tokens, window)  # keys
    whole_blocks = blocks + 1 + (behind > 0)

    def queries(x: jax.Array) -> jax.Array:
        """[b, t, ...] -> [b * c, window, ...]."""
        x = jnp.pad(x, ((0, 0), (0, fill), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch * blocks, window, *x.shape[2:])

    def keys(x: jax.Array, value: int = 0) -> jax.Array:
        """[b, s, ...] -> [b * c, 2 * window + behind, ...]: each block, and what is around it."""
        needed = whole_blocks * window
        ends = window, needed - window - blocks * window + fill
        x = jnp.pad(x, ((0, 0), ends, *((0, 0),) * (x.ndim - 2)), constant_values=value)
        if x.shape[1] != needed:
            x = jax.lax.dynamic_slice_in_dim(x, first_query, needed, axis=1)
        x = x.reshape(batch, whole_blocks, window, *x.shape[2:])
        around = [x[:, :blocks], x[:, 1 : 1 + blocks]]
        if behind:
            around.append(x[:, 2:, :behind])
        together = jnp.concatenate(around, axis=2)
        return together.reshape(batch * blocks, 2 * window + behind, *together.shape[3:])

    in_blocks = AttentionMask(
        query_positions_bt=queries(mask.query_positions_bt),
        query_segments_bt=queries(mask.query_segments_bt),
        key_positions_bs=keys(mask.key_positions_bs),
        key_segments_bs=keys(mask.key_segments_bs, NOWHERE),
        query_images_bt=None if mask.query_images_bt is None else queries(mask.query_images_bt),
        key_images_bs=None if mask.key_images_bs is None else keys(mask.key_images_bs, TEXT),
        window=window,
    )
    seen_bts = allowed(in_blocks)
    output_btnh = attention_reference.attend_seen(
        queries(query_btnh), keys(key_bskh), keys(value_bskh), seen_bts, soft_cap
    )
    return output_btnh.reshape(batch, blocks * window, *query_btnh.shape[2:])[:, :length]
