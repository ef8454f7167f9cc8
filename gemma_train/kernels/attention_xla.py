"""Attention with every score in memory: the reference that each other form is tested against."""

import jax
import jax.numpy as jnp

from gemma_train.kernels.attention_mask import AttentionMask, allowed
from gemma_train.kernels.softmax import masked_softmax


def attend(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
) -> jax.Array:
    """[b, t, n, h] weighted values; scores and softmax in float32. Memory grows as t * s."""
    heads_k = key_bskh.shape[2]
    query_btkgh = query_btnh.reshape(*query_btnh.shape[:2], heads_k, -1, query_btnh.shape[3])
    scores_bkgts = jnp.einsum(
        "btkgh,bskh->bkgts", query_btkgh, key_bskh, preferred_element_type=jnp.float32
    )
    seen_bts = allowed(
        mask.query_positions_bt,
        mask.query_segments_bt,
        mask.key_positions_bs,
        mask.key_segments_bs,
        mask.window,
    )
    weights_bkgts = masked_softmax(scores_bkgts, seen_bts[:, None, None], soft_cap)
    output_btkgh = jnp.einsum(
        "bkgts,bskh->btkgh", weights_bkgts.astype(value_bskh.dtype), value_bskh
    )
    return output_btkgh.reshape(query_btnh.shape)
