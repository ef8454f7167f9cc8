"""The attention door: one call, several forms of the same sum; it fails rather than falls back."""

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemma_train.axes import activation
from gemma_train.errors import require
from gemma_train.kernels import attention_blocked, attention_reference, attention_splash
from gemma_train.kernels.attention_mask import AttentionMask
from gemma_train.mesh import on_tpu

Implementation = Literal["auto", "xla", "splash", "blocked", "reference"]
OUTPUT = "attention_output"  # the name by which a remat policy can keep what the door gives


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
    the mesh axis seq: keys and values are then gathered; for a window within a shard `splash` takes
    the neighbour's last ones instead. `auto` takes `splash` on TPU and `xla` elsewhere and for
    images; `xla` is `blocked` for windows shorter than the row, else `reference`. Raises
    `UserError` where a form cannot compute the mask.
    """
    if implementation == "auto":
        implementation = "splash" if on_tpu() and mask.query_images_bt is None else "xla"
    if implementation == "xla":
        local = mask.window is not None and mask.window < key_bskh.shape[1]
        implementation = "blocked" if local else "reference"
    require(
        implementation != "blocked" or mask.window is not None,
        "compute.attention is 'blocked', which has no global layers: use 'auto' or 'reference'",
    )
    require(
        implementation != "splash" or mask.query_images_bt is None,
        "compute.attention is 'splash', which sees no image both ways: use 'auto' or 'xla'",
    )
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
    length = query_btnh.shape[1]
    if implementation == "splash":
        reach, split = attention_splash.reach(mask.window), _shards() > 1
        halo = reach if split and reach is not None and reach <= length else 0
        others = partial(_with_left_neighbour, halo=halo) if halo else _all_positions
        return attention_splash.attend(
            query_btnh,
            others(key_bskh),
            others(value_bskh),
            replace(mask, key_segments_bs=others(mask.key_segments_bs + 1) - 1),
            soft_cap,
            kept_as=OUTPUT,
            halo=halo,
            interpret=not on_tpu(),
        )
    key_bskh, value_bskh = _all_positions(key_bskh), _all_positions(value_bskh)
    mask = replace(
        mask,
        key_positions_bs=_all_positions(mask.key_positions_bs),
        key_segments_bs=_all_positions(mask.key_segments_bs),
        key_images_bs=None if mask.key_images_bs is None else _all_positions(mask.key_images_bs),
    )
    if implementation == "reference":
        return attention_reference.attend(query_btnh, key_bskh, value_bskh, mask, soft_cap)
    first_query = jax.lax.axis_index("seq") * length if key_bskh.shape[1] != length else 0
    return attention_blocked.attend(query_btnh, key_bskh, value_bskh, mask, soft_cap, first_query)


def _shards() -> int:
    return jax.sharding.get_abstract_mesh().shape["seq"]


def _with_left_neighbour(x: jax.Array, *, halo: int) -> jax.Array:
    """[b, s / seq, ...] -> [b, halo + s / seq, ...]: the last `halo` positions of the left
    neighbour ahead of one's own; zeros where the row begins."""
    to_the_right = [(shard, shard + 1) for shard in range(_shards() - 1)]
    received = jax.lax.ppermute(x[:, -halo:], "seq", to_the_right)
    return jnp.concatenate([received, x], axis=1)


def _all_positions(x: jax.Array) -> jax.Array:
    """[b, s / seq, ...] -> [b, s, ...]. Untiled: its transpose is then a reduce-scatter on TPU."""
    if _shards() == 1:
        return x
    shards = jax.lax.all_gather(x, "seq", axis=1, tiled=False)
    return shards.reshape(x.shape[0], -1, *x.shape[2:])
