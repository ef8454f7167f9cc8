"""Attention with every score in memory: the reference that each other form is tested against."""

import jax
import jax.numpy as jnp

from gemma_train.kernels.attention.mask import AttentionMask, allowed
from gemma_train.kernels.softmax import masked_softmax


def attend(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
) -> jax.Array:
    """[b, t, n, h] weighted values; scores and softmax in float32. Memory grows as t * s."""
    return attend_seen(query_btnh, key_bskh, value_bskh, allowed(mask), soft_cap)


def attend_seen(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    seen_bts: jax.Array,
    soft_cap: float | None,
) -> jax.Array:
    """Attention under a mask in memory, the queries that share a key head as rows of one matrix."""
    batch, length, heads_n, head = query_btnh.shape
    heads_k = key_bskh.shape[2]
    query_btkgh = query_btnh.reshape(batch, length, heads_k, heads_n // heads_k, head)
    scores_bktgs = jnp.einsum(
        "bktgh,bskh->bktgs",
        jnp.swapaxes(query_btkgh, 1, 2),
        key_bskh,
        preferred_element_type=jnp.float32,
    )
    weights_bktgs = masked_softmax(scores_bktgs, seen_bts[:, None, :, None], soft_cap)
    output_bktgh = jnp.einsum(
        "bktgs,bskh->bktgh", weights_bktgs.astype(value_bskh.dtype), value_bskh
    )
    return jnp.swapaxes(output_bktgh, 1, 2).reshape(query_btnh.shape)
