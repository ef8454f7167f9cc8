"""Attention in plain XLA whose memory does not grow as t * t: queries come in blocks.

Under a window a block of queries sees its own keys and those of the blocks before it that the
window reaches: at most 2 * window scores a query are computed instead of t. Where there are images,
a soft token may see the first keys behind its block too, as far as an image goes. Without a window
blocks see every key, one block at a time, and are computed again in the backward pass.
"""

from dataclasses import replace

import jax

from gemma_train.kernels.attention import reference
from gemma_train.kernels.attention.blocks import Blocks
from gemma_train.kernels.attention.mask import AttentionMask

BLOCK = 512  # queries, at most


def attend_near(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    first_query: int = 0,
) -> jax.Array:
    """[b, t, n, h] weighted values of queries that stand at keys first_query, first_query + 1, ...

    Exact where positions are consecutive within segments. `mask.window` must be set.
    """
    length, window = query_btnh.shape[1], mask.window
    assert window is not None
    size = min(window, length, BLOCK)
    blocks = Blocks(length, size, ahead=-(-(window - 1) // size), behind=mask.looks_ahead)

    def keys(x: jax.Array) -> jax.Array:
        return blocks.keys(x, first_query)

    in_blocks = mask.with_queries(blocks.queries).with_keys(keys)
    output_btnh = reference.attend(
        blocks.queries(query_btnh), keys(key_bskh), keys(value_bskh), in_blocks, soft_cap
    )
    return blocks.rows(output_btnh)


def attend_to_all(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
) -> jax.Array:
    """[b, t, n, h] weighted values of queries that may see any key, under any mask."""
    batch, length = query_btnh.shape[:2]
    blocks = Blocks(length, min(length, BLOCK))

    def apart(x: jax.Array) -> jax.Array:
        """[b, t, ...] -> [c, b, size, ...]."""
        cut = blocks.queries(x)
        return cut.reshape(batch, blocks.count, *cut.shape[1:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(block: tuple) -> jax.Array:
        query_btnh, positions_bt, segments_bt, images_bt = block
        of_block = replace(
            mask,
            query_positions_bt=positions_bt,
            query_segments_bt=segments_bt,
            query_images_bt=images_bt,
        )
        return reference.attend(query_btnh, key_bskh, value_bskh, of_block, soft_cap)

    places = mask.query_positions_bt, mask.query_segments_bt, mask.query_images_bt
    cut = jax.lax.map(one, jax.tree.map(apart, (query_btnh, *places)))
    return blocks.rows(cut.swapaxes(0, 1).reshape(-1, *cut.shape[2:]))
