"""A layer's attention: projections, query-key norm, rotary positions, and a cache for sampling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.kernels.attention.attention import attention
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.kernels.contraction import contract, contract_each
from gemma_train.model.config import ComputeConfig, GemmaConfig, Kind
from gemma_train.model.layers import rms_norm, rotate
from gemma_train.model.packing import Places
from gemma_train.model.weight import Declaration
from gemma_train.zero3 import gather


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys and values of past tokens; a token at position p stands in slot p % slots.

    A local layer has as many slots as its window. Free slots have segment -1.
    """

    key_bskh: jax.Array
    value_bskh: jax.Array
    positions_bs: jax.Array
    segments_bs: jax.Array

    @classmethod
    def empty(cls, batch: int, slots: int, config: GemmaConfig, dtype: str) -> "LayerCache":
        shape = (batch, slots, config.key_value_heads, config.head_dimension)
        wide, narrow = activation("bskh"), activation("bs")
        return cls(
            key_bskh=jnp.zeros(shape, dtype, out_sharding=wide),
            value_bskh=jnp.zeros(shape, dtype, out_sharding=wide),
            positions_bs=jnp.zeros((batch, slots), jnp.int32, out_sharding=narrow),
            segments_bs=jnp.full((batch, slots), -1, jnp.int32, out_sharding=narrow),
        )

    def write(
        self,
        key_btkh: jax.Array,
        value_btkh: jax.Array,
        positions_bt: jax.Array,
        segments_bt: jax.Array,
    ) -> "LayerCache":
        """The cache with these tokens in their slots; padding, and what a later token of the same
        call would overwrite, is not written."""
        slots = self.positions_bs.shape[1]
        newest_b1 = jnp.max(positions_bt, axis=1, keepdims=True)
        kept_bt = (segments_bt > 0) & (positions_bt > newest_b1 - slots)
        slot_bt = jnp.where(kept_bt, positions_bt % slots, slots)
        slot_bs = reshard(slot_bt, activation("bs"))

        @jax.vmap
        def put_row(old: jax.Array, slot: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[slot].set(new, mode="drop")

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            new = reshard(new.astype(old.dtype), activation("bskh"[: new.ndim]))
            return put_row(old, slot_bs, new)

        return LayerCache(
            key_bskh=put(self.key_bskh, key_btkh),
            value_bskh=put(self.value_bskh, value_btkh),
            positions_bs=put(self.positions_bs, positions_bt),
            segments_bs=put(self.segments_bs, segments_bt),
        )

    def as_keys(self) -> "LayerCache":
        """The same, placed as attention wants its keys: like the positions of a row."""
        return jax.tree.map(lambda x: reshard(x, activation("btkh"[: x.ndim])), self)


class Attention(nnx.Module):
    """Grouped-query attention of one layer, local or global."""

    def __init__(
        self, config: GemmaConfig, compute: ComputeConfig, kind: Kind, declare: Declaration
    ):
        self.config, self.compute = config, compute
        self.kind: Kind = kind
        self.query = declare.weight("dnh", fan_in="d")
        self.key = declare.weight("dkh", fan_in="d")
        self.value = declare.weight("dkh", fan_in="d")
        self.output = declare.weight("nhd", fan_in="nh")
        if config.query_key_norm:
            self.query_norm = declare.scale("h")
            self.key_norm = declare.scale("h")

    def __call__(
        self, x_btd: jax.Array, places: Places, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """The branch's [b, t, d] output, and the cache with these tokens in it.

        With a cache, one new token a row looks at the cache; several (the prompt, the cache still
        empty) look at themselves.
        """
        positions_bt, segments_bt = places.positions_bt, places.segments_bt
        query_btnh, key_btkh, value_btkh = self._project(x_btd, positions_bt)
        window = self.config.window if self.kind == "local" else None
        image_tokens = self.config.vision.tokens if self.config.vision else 0
        mask = AttentionMask.of_itself(
            positions_bt, segments_bt, window, places.images_bt, image_tokens
        )
        keys_bskh, values_bskh = key_btkh, value_btkh
        if cache is not None:
            cache = cache.write(key_btkh, value_btkh, positions_bt, segments_bt)
            if x_btd.shape[1] == 1:
                past = cache.as_keys()
                keys_bskh, values_bskh = past.key_bskh, past.value_bskh
                mask = AttentionMask(
                    query_positions_bt=positions_bt,
                    query_segments_bt=segments_bt,
                    key_positions_bs=past.positions_bs,
                    key_segments_bs=past.segments_bs,
                    window=window,
                )
        implementation = self.compute.attention if cache is None else "xla"
        output_btnh = attention(
            query_btnh,
            keys_bskh,
            values_bskh,
            mask,
            soft_cap=self.config.attention_soft_cap,
            implementation="reference" if x_btd.shape[1] == 1 else implementation,
        )
        output_nhd = gather(self.output[...], x_btd.dtype)
        return contract("btnh,nhd->btd", output_btnh, output_nhd), cache

    def _project(
        self, x_btd: jax.Array, positions_bt: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Scaled, normed and rotated queries and keys, and values."""
        weights = (self.query[...], self.key[...], self.value[...])
        query_btnh, key_btkh, value_btkh = (
            checkpoint_name(product_btnh, name)
            for product_btnh, name in zip(
                contract_each("btd,dnh->btnh", x_btd, weights),
                ("query", "key", "value"),
                strict=True,
            )
        )
        if self.config.query_key_norm:
            query_btnh = rms_norm(query_btnh, self.query_norm[...])
            key_btkh = rms_norm(key_btkh, self.key_norm[...])
        base, factor = self.config.rope(self.kind)
        scale = (self.config.query_scale or self.config.head_dimension) ** -0.5
        query_btnh = rotate(query_btnh, positions_bt, base, factor) * scale
        key_btkh = rotate(key_btkh, positions_bt, base, factor)
        return query_btnh, key_btkh, value_btkh
