"""jax's splash kernel on rows of a batch: its output, and the two halves of its derivative apart.

The kernel's own derivative knows no sum but its own. Where its sum is merged with another, forward
and backward pass are called by themselves, with the merged output and denominator between them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)

from gemma_train.kernels.attention.mask import AttentionMask

Kernel = splash.SplashAttentionKernel


def output(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
) -> jax.Array:
    """[b, t, n, h] weighted values; differentiable."""
    return _by_rows(kernel, mask, query_btnh, key_bskh, value_bskh)


def output_and_denominator(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
) -> tuple[jax.Array, jax.Array]:
    """The same, and the [b, t, n] log of the softmax's denominator; not differentiable."""
    options = kernel.kwargs | {"save_residuals": True, "residual_checkpoint_name": None}
    tables = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info
    output_btnh, (denominator_btn,) = _by_rows(
        Kernel(*tables, **options), mask, query_btnh, key_bskh, value_bskh
    )
    return output_btnh, denominator_btn


def gradients(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    output_btnh: jax.Array,
    denominator_btn: jax.Array,
    cotangent_btnh: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Those in queries, keys and values of the kernel's part of a sum, whose output and (log)
    denominator are given."""

    def backward(query, key, value, output, denominator, cotangent, *, segment_ids):
        kept = query, key, value, segment_ids, None, output, denominator
        tables = kernel.dq_mask_info, kernel.dkv_mask_info
        # No public call takes an output and a denominator that are not the kernel's own.
        found = splash._splash_attention_bwd(res=(*kept, *tables), do=cotangent, **kernel.kwargs)
        return found[3:6]

    arrays = query_btnh, key_bskh, value_bskh, output_btnh, denominator_btn, cotangent_btnh
    return _by_rows(backward, mask, *arrays)


def _by_rows(call: Callable, mask: AttentionMask, *arrays_btnh: jax.Array):
    """What `call` gives of each row, for which heads come first."""

    def heads_moved(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 1, 2)

    @jax.vmap
    def rows(query_segments_t, key_segments_s, *arrays_nth):
        segments = splash.SegmentIds(q=query_segments_t, kv=key_segments_s)
        return call(*arrays_nth, segment_ids=segments)

    found = rows(
        mask.query_segments_bt, mask.key_segments_bs, *jax.tree.map(heads_moved, arrays_btnh)
    )
    return jax.tree.map(heads_moved, found)
