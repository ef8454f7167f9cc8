"""What soft tokens see of their own image behind themselves, as a sum apart from the causal one.

A kernel that knows no images computes the causal sum. This is the strict upper triangle within each
image, in plain XLA: blocks as long as an image, and as many keys behind each. The two are merged by
the logs of their softmax's denominators; given the merged one, each part's gradients are its own.

Keys begin where the queries do, and go on for an image's length behind them.
"""

import jax
import jax.numpy as jnp

from gemma_train.kernels.attention.blocks import Blocks
from gemma_train.kernels.attention.mask import AttentionMask, later_of_image
from gemma_train.kernels.softmax import masked_scores


def log_denominator(
    query_btnh: jax.Array, key_bskh: jax.Array, mask: AttentionMask, soft_cap: float | None
) -> jax.Array:
    """[b, t, n] log of the sum of exp(score), float32; far below 0 where nothing is seen."""
    blocks = _blocks(query_btnh, mask)
    scores_bktgs = _scores(blocks, query_btnh, key_bskh, mask, soft_cap)
    return _in_rows(blocks, jax.nn.logsumexp(scores_bktgs, axis=-1))


def weighted(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    denominator_btn: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """([b, t, n, h] values, [b, t, n] weights), summed in float32.

    A weight is exp(score - denominator), which is given as its log.
    """
    blocks = _blocks(query_btnh, mask)
    scores_bktgs = _scores(blocks, query_btnh, key_bskh, mask, soft_cap)
    denominator_bktg = _by_key_head(blocks.queries(denominator_btn), key_bskh.shape[2])
    weights_bktgs = jnp.exp(scores_bktgs - denominator_bktg[..., None])
    output_bktgh = jnp.einsum(
        "bktgs,bskh->bktgh",
        weights_bktgs.astype(value_bskh.dtype),
        blocks.keys(value_bskh, 0),
        preferred_element_type=jnp.float32,
    )
    return _in_rows(blocks, output_bktgh), _in_rows(blocks, jnp.sum(weights_bktgs, axis=-1))


def _blocks(query_btnh: jax.Array, mask: AttentionMask) -> Blocks:
    return Blocks(query_btnh.shape[1], mask.image_tokens, behind=mask.image_tokens)


def _scores(
    blocks: Blocks,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
) -> jax.Array:
    """[b * c, k, size, g, 2 * size] float32."""

    def keys(x: jax.Array) -> jax.Array:
        return blocks.keys(x, 0)

    scores_bktgs = jnp.einsum(
        "bktgh,bskh->bktgs",
        _by_key_head(blocks.queries(query_btnh), key_bskh.shape[2]),
        keys(key_bskh),
        preferred_element_type=jnp.float32,
    )
    seen_bts = later_of_image(mask.with_queries(blocks.queries).with_keys(keys))
    return masked_scores(scores_bktgs, seen_bts[:, None, :, None], soft_cap)


def _by_key_head(x_btn: jax.Array, key_heads: int) -> jax.Array:
    """[b, t, n, ...] -> [b, k, t, g, ...]."""
    batch, length, heads = x_btn.shape[:3]
    grouped = x_btn.reshape(batch, length, key_heads, heads // key_heads, *x_btn.shape[3:])
    return jnp.swapaxes(grouped, 1, 2)


def _in_rows(blocks: Blocks, x_bktg: jax.Array) -> jax.Array:
    """[b * c, k, size, g, ...] -> [b, t, n, ...]."""
    x = jnp.swapaxes(x_bktg, 1, 2)
    return blocks.rows(x.reshape(*x.shape[:2], -1, *x.shape[4:]))
