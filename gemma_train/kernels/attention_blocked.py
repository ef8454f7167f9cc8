"""Local attention in O(t * window) in plain XLA: a block of queries sees itself and its left.

Rows are cut into blocks of `window` tokens; a query of a block can only see keys of that block and
of the one before it, so 2 * window scores a query are computed instead of t.
"""

import jax
import jax.numpy as jnp

from gemma_train.kernels.attention_mask import AttentionMask, allowed
from gemma_train.kernels.softmax import masked_softmax

# The segment of keys that pad a row: no query has it.
NOWHERE = -1


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
    window, heads_k = mask.window, key_bskh.shape[2]
    batch, length, heads_n, head = query_btnh.shape
    blocks = -(-length // window)
    fill = blocks * window - length

    def queries(x: jax.Array, value: int = 0) -> jax.Array:
        """[b, t, ...] -> [b, c, window, ...]."""
        x = jnp.pad(x, ((0, 0), (0, fill), *((0, 0),) * (x.ndim - 2)), constant_values=value)
        return x.reshape(batch, blocks, window, *x.shape[2:])

    def keys(x: jax.Array, value: int = 0) -> jax.Array:
        """[b, s, ...] -> [b, c, 2 * window, ...]: each block of queries and the one before it."""
        x = jnp.pad(x, ((0, 0), (window, fill), *((0, 0),) * (x.ndim - 2)), constant_values=value)
        if x.shape[1] != (blocks + 1) * window:
            x = jax.lax.dynamic_slice_in_dim(x, first_query, (blocks + 1) * window, axis=1)
        x = x.reshape(batch, blocks + 1, window, *x.shape[2:])
        return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)

    query_bctkgh = queries(query_btnh.reshape(batch, length, heads_k, -1, head))
    key_bcskh, value_bcskh = keys(key_bskh), keys(value_bskh)
    seen_bcts = allowed(
        queries(mask.query_positions_bt),
        queries(mask.query_segments_bt),
        keys(mask.key_positions_bs),
        keys(mask.key_segments_bs, NOWHERE),
        window,
    )
    scores_bckgts = jnp.einsum(
        "bctkgh,bcskh->bckgts", query_bctkgh, key_bcskh, preferred_element_type=jnp.float32
    )
    weights_bckgts = masked_softmax(scores_bckgts, seen_bcts[:, :, None, None], soft_cap)
    output_bctkgh = jnp.einsum(
        "bckgts,bcskh->bctkgh", weights_bckgts.astype(value_bskh.dtype), value_bcskh
    )
    return output_bctkgh.reshape(batch, blocks * window, heads_n, head)[:, :length]
