"""The attention door: one call, several forms of the same sum; it fails rather than falls back."""

from functools import partial
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from gemma_train.axes import activation
from gemma_train.kernels.attention import along_seq, blocked, reference, splash
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.mesh import on_tpu

Implementation = Literal["auto", "xla", "splash", "blocked", "reference"]
OUTPUT = "attention_output"  # the name by which a remat policy can keep what the door gives
LONG = 2048  # keys of a row from which on XLA's scores of all pairs are no longer in memory at once


def attention(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    *,
    soft_cap: float | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """[b, t, n, h]: each query's values weighted by softmax(query . key) over the keys it may see.

    Queries come scaled. Query head m uses key/value head m // (n / k). Sequences may be split over
    the mesh axis seq: under a window a device takes from its neighbours the keys that its queries
    can see and no more, without one it gathers all. `auto` takes `splash` on TPU and `xla`
    elsewhere; `xla` is `blocked` for windows shorter than the row and for long rows, else
    `reference`. Raises `UserError` where a form cannot compute the mask.
    """
    if implementation == "auto":
        implementation = "splash" if on_tpu() else "xla"
    if implementation == "xla":
        length, window = key_bskh.shape[1], mask.window
        is_local = window is not None and window < length
        implementation = "blocked" if is_local or length > LONG else "reference"
    local_form = partial(_on_one_shard, soft_cap=soft_cap, implementation=implementation)
    arrays = (query_btnh, key_bskh, value_bskh, mask)
    specs = jax.tree.map(lambda x: activation("btnh"[: x.ndim]), arrays)
    output_btnh = jax.shard_map(
        local_form,
        in_specs=specs,
        out_specs=specs[0],
        check_vma=implementation != "splash",  # the kernel's outputs carry no such types
    )(*arrays)
    # Splash names what its backward pass reads itself: named again it would be kept twice.
    return output_btnh if implementation == "splash" else checkpoint_name(output_btnh, OUTPUT)


def _on_one_shard(
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    *,
    soft_cap: float | None,
    implementation: Implementation,
) -> jax.Array:
    """Attention of the positions of one device, over the keys that they can see along seq."""
    arrays = query_btnh, key_bskh, value_bskh
    if implementation == "splash":
        return splash.attend(*arrays, mask, soft_cap, kept_as=OUTPUT, interpret=not on_tpu())
    length, window = query_btnh.shape[1], mask.window
    row = along_seq.shards() * length
    if implementation == "blocked" and window is not None and window < row:
        left, right = (along_seq.halo(length, wanted) for wanted in (window - 1, mask.looks_ahead))
        brought = partial(along_seq.with_halo, left=left, right=right)
        form = partial(blocked.attend_near, first_query=left)
    else:
        brought = along_seq.everywhere
        form = blocked.attend_to_all if implementation == "blocked" else reference.attend
    return form(
        query_btnh, brought(key_bskh), brought(value_bskh), mask.with_keys(brought), soft_cap
    )
