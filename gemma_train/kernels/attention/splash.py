"""Attention on TPU: jax's splash kernel, which never has a [t, s] array and skips unseen blocks.

The window is one of indices: within a segment positions are consecutive, so it is the same. The
backward pass runs as two kernels: fused, dq has partial sums that grow as t squared (2,242 MB
against 169 MB at 32,768 tokens on v5p). The kernel knows no images: `splash_images` does.
"""

import jax

from gemma_train.kernels.attention import along_seq, splash_kernel, splash_tables
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.kernels.attention.splash_images import Runs, attend_with_images
from gemma_train.kernels.attention.splash_kernel import Kernel


def attend_near(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    first_query: int,
    *,
    kept_as: str,
    interpret: bool = False,
) -> jax.Array:
    """[b, t, n, h] weighted values of queries that stand at keys first_query, first_query + 1, ...

    Exact where positions are consecutive within segments. What the backward pass reads of the
    result is named `kept_as`. `interpret` runs the kernel's own steps on a CPU. Raises `UserError`
    for a length that blocks do not divide.
    """
    (length, heads), window = query_btnh.shape[1:3], mask.window
    assert window is not None
    kernel = splash_tables.near(
        length, first_query, heads, window, soft_cap=soft_cap, kept_as=kept_as, interpret=interpret
    )
    runs = Runs((first_query,), length=length, behind=mask.looks_ahead)
    return _attend(kernel, query_btnh, key_bskh, value_bskh, mask, runs, first_query + length)


def attend_to_all(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    soft_cap: float | None,
    *,
    kept_as: str,
    interpret: bool = False,
) -> jax.Array:
    """The same of queries that see every earlier key: keys are those of all shards along seq.

    Shards swap halves of their queries, so that each has as much to look at.
    """
    (length, heads), shards = query_btnh.shape[1:3], along_seq.shards()
    kernel = splash_tables.everywhere(
        length, shards, heads, soft_cap=soft_cap, kept_as=kept_as, interpret=interpret
    )
    kernel, keys = splash_tables.of_this_shard(kernel, shards), shards * length
    here = jax.lax.axis_index("seq")
    if not splash_tables.is_mirrored(length, shards):
        runs = Runs((here * length,), length=length, behind=mask.looks_ahead)
        return _attend(kernel, query_btnh, key_bskh, value_bskh, mask, runs, keys)
    half = length // 2
    starts = tuple(number * half for number in along_seq.mirrored_halves(here, shards))
    swapped_btnh = _attend(
        kernel,
        along_seq.mirrored(query_btnh),
        key_bskh,
        value_bskh,
        mask.with_queries(along_seq.mirrored),
        Runs(starts, length=half, behind=mask.looks_ahead),
        keys,
    )
    return along_seq.mirrored(swapped_btnh)


def _attend(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    runs: Runs,
    keys: int,
) -> jax.Array:
    """The kernel sees the first `keys` keys; what lies behind is there for images."""
    if mask.query_images_bt is not None:
        return attend_with_images(kernel, query_btnh, key_bskh, value_bskh, mask, runs, keys)
    return splash_kernel.output(kernel, query_btnh, key_bskh, value_bskh, mask)
