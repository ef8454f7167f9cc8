"""Local attention in O(t * window) in plain XLA: a block of queries sees itself and its left.

Rows are cut into blocks of `window` tokens; a query of a block can only see keys of that block and
of the one before it, so 2 * window scores a query are computed instead of t.
"""

import jax
import jax.numpy as jnp

from gemma_train.kernels import attention_reference
from gemma_train.kernels.attention_mask import AttentionMask, allowed

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
    window, (batch, length) = mask.window, query_btnh.shape[:2]
    assert window is not None
    blocks = -(-length // window)
    fill = blocks * window - length

    def queries(x: jax.Array) -> jax.Array:
        """[b, t, ...] -> [b * c, window, ...]."""
        x = jnp.pad(x, ((0, 0), (0, fill), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch * blocks, window, *x.shape[2:])

    def keys(x: jax.Array, value: int = 0) -> jax.Array:
        """[b, s, ...] -> [b * c, 2 * window, ...]: each block of queries and the one before it."""
        x = jnp.pad(x, ((0, 0), (window, fill), *((0, 0),) * (x.ndim - 2)), constant_values=value)
        if x.shape[1] != (blocks + 1) * window:
            x = jax.lax.dynamic_slice_in_dim(x, first_query, (blocks + 1) * window, axis=1)
        x = x.reshape(batch, blocks + 1, window, *x.shape[2:])
        pairs = jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)
        return pairs.reshape(batch * blocks, 2 * window, *pairs.shape[3:])

    seen_bts = allowed(
        queries(mask.query_positions_bt),
        queries(mask.query_segments_bt),
        keys(mask.key_positions_bs),
        keys(mask.key_segments_bs, NOWHERE),
        window,
    )
    output_btnh = attention_reference.attend_seen(
        queries(query_btnh), keys(key_bskh), keys(value_bskh), seen_bts, soft_cap
    )
    return output_btnh.reshape(batch, blocks * window, *query_btnh.shape[2:])[:, :length]
