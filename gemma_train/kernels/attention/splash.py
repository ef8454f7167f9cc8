"""Attention on TPU: jax's splash kernel, which never has a [t, s] array and skips unseen blocks.

The window is one of indices: within a segment positions are consecutive, so it is the same. The
backward pass runs as two kernels: fused, dq has partial sums that grow as t squared (2,242 MB
against 169 MB at 32,768 tokens on v5p). The kernel knows no images: `splash_images` does.
"""

from functools import partial

import jax

from gemma_train.kernels.attention import along_seq, splash_kernel, splash_tables
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.kernels.attention.splash_images import Form, Keys, attend_with_images


def attend(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    *,
    kept_as: str,
    interpret: bool = False,
) -> jax.Array:
    """[b, t, n, h] weighted values of the tokens that a device holds, of what it needs of others.

    Under a window its neighbours along seq give the keys ahead of its own. Without one it gathers
    all, and shards swap halves of their queries, so that each has as much to look at. Exact where
    positions are consecutive within segments. What the backward pass reads of the result is named
    `kept_as`. `interpret` runs the kernel's own steps on a CPU. Raises `UserError` for a length
    that blocks do not divide.
    """
    (length, heads), window = query_btnh.shape[1:3], mask.window
    shards, is_swapped = along_seq.shards(), False
    options = {"soft_cap": soft_cap, "kept_as": kept_as, "interpret": interpret}
    if window is None:
        brought, is_swapped = along_seq.everywhere, splash_tables.is_mirrored(length, shards)
        kernel = splash_tables.kernel_to_all(length, shards, heads, **options)
        kernel = splash_tables.of_this_shard(kernel, shards)
    else:
        left = along_seq.halo(length, splash_tables.reach(window))
        brought = partial(along_seq.with_halo, left=left)
        kernel = splash_tables.kernel_near(length, left, heads, window, **options)
    form = Form(soft_cap, kept_as, is_swapped)
    causal = Keys(brought(key_bskh), brought(value_bskh), mask.with_keys(brought))
    if mask.query_images_bt is not None:
        ahead = along_seq.halo(length, mask.image_tokens)
        brought = partial(along_seq.with_halo, right=ahead)
        later = Keys(brought(key_bskh), brought(value_bskh), mask.with_keys(brought))
        return attend_with_images(kernel, query_btnh, causal, later, form)
    keys = causal.key_bskh, causal.value_bskh, causal.mask.with_queries(form.order)
    return form.order(splash_kernel.output(kernel, form.order(query_btnh), *keys))
