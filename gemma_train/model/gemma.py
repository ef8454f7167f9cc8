"""Gemma 1, 2 and 3: blocks, the scan over their repeating pattern, and the logits.

One file for every generation: they differ by the values of GemmaConfig. Layers repeat a pattern
(five local, one global in Gemma 3); equal blocks of all repetitions are stacked and a scan runs
over the repetitions, so that compile time does not grow with depth. What a cut pattern leaves over
follows unrolled.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.mesh import mesh_of
from gemma_train.model.attention import Attention, LayerCache
from gemma_train.model.config import ComputeConfig, GemmaConfig, Kind
from gemma_train.model.image_inputs import checked_inputs, checked_pixels, images_of
from gemma_train.model.layers import Embedding, FeedForward, rms_norm
from gemma_train.model.packing import Places, packing
from gemma_train.model.remat import rematerialised
from gemma_train.model.siglip import Siglip, encode
from gemma_train.model.soft_tokens import Images, SoftTokens
from gemma_train.model.weight import Declaration
from gemma_train.zero3 import gather, share, stacked, whole


class Block(nnx.Module):
    """Attention and feed-forward, each behind a norm and, in Gemma 2 and 3, before another."""

    def __init__(
        self, config: GemmaConfig, compute: ComputeConfig, kind: Kind, declare: Declaration
    ):
        self.attention = Attention(config, compute, kind, declare)
        self.feed_forward = FeedForward(declare)
        self.pre_attention_norm = declare.scale("d")
        self.pre_feed_forward_norm = declare.scale("d")
        self.post_norms = config.post_norms
        if config.post_norms:
            self.post_attention_norm = declare.scale("d")
            self.post_feed_forward_norm = declare.scale("d")

    def __call__(
        self, x_btd: jax.Array, places: Places, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        normed_btd = rms_norm(x_btd, self.pre_attention_norm[...])
        branch_btd, cache = self.attention(normed_btd, places, cache)
        branch_btd = checkpoint_name(branch_btd, "attention_branch")
        if self.post_norms:
            branch_btd = rms_norm(branch_btd, self.post_attention_norm[...])
        x_btd = x_btd + branch_btd
        branch_btd = self.feed_forward(rms_norm(x_btd, self.pre_feed_forward_norm[...]))
        branch_btd = checkpoint_name(branch_btd, "feed_forward_branch")
        if self.post_norms:
            branch_btd = rms_norm(branch_btd, self.post_feed_forward_norm[...])
        return x_btd + branch_btd, cache


class Gemma(nnx.Module):
    """A Gemma of any generation and size; parameters in float32."""

    def __init__(self, config: GemmaConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        repetitions, left_over = divmod(config.layers, len(config.pattern))
        alone = Declaration(config.sizes, rngs)
        stacked = Declaration(config.sizes, rngs, stack=repetitions)
        block = partial(Block, config, compute)
        self.embedding = Embedding(alone)
        kinds = config.pattern if repetitions else ()
        self.pattern = nnx.List([block(kind, stacked) for kind in kinds])
        self.remainder = nnx.List([block(kind, alone) for kind in config.pattern[:left_over]])
        self.final_norm = alone.scale("d")
        if config.vision is not None:
            self.soft_tokens = SoftTokens(alone)

    @property
    def encoder(self) -> Siglip | None:
        """The frozen encoder that this very model came with: beside it, and no leaf of it.

        What a transformation makes of a model has none: jax.tree.map, a gradient, a step.
        """
        return _ENCODERS.get(self)

    @encoder.setter
    def encoder(self, encoder: Siglip) -> None:
        _ENCODERS[self] = encoder

    def __call__(
        self,
        tokens_bt: jax.Array,
        positions_bt: jax.Array,
        segments_bt: jax.Array,
        cache: "Cache | None" = None,
        images: Images | None = None,
    ) -> tuple[jax.Array, "Cache | None"]:
        """The final normed [b, t, d] states of these tokens, and the cache with them in it.

        Where images are given, their soft tokens stand in the place of the tokens' own embeddings.
        """
        x_btd = self.embedding(tokens_bt, self.compute.dtype)
        places = Places(positions_bt=positions_bt, segments_bt=segments_bt)
        if images is not None:
            x_btd = self.soft_tokens(x_btd, images)
            places = replace(places, images_bt=images.image_bt)
        pattern = _prepared(self.pattern, vector_rank=2)
        remainder = _prepared(self.remainder, vector_rank=1)
        if cache is None:
            x_btd = _train_through(self.compute, x_btd, places, pattern, remainder)
            return rms_norm(x_btd, whole(self.final_norm[...])), None
        run = rematerialised(_run, self.compute)

        def layers(x_btd, blocks_and_caches):
            new = []
            for block, layer in zip(*blocks_and_caches, strict=True):
                x_btd, layer = run(block, x_btd, places, layer)
                new.append(layer)
            return x_btd, new

        in_pattern = cache.pattern
        if len(pattern):
            x_btd, in_pattern = jax.lax.scan(layers, x_btd, (pattern, in_pattern))
        x_btd, in_remainder = layers(x_btd, (remainder, cache.remainder))
        states_btd = rms_norm(x_btd, whole(self.final_norm[...]))
        return states_btd, Cache(pattern=in_pattern, remainder=in_remainder)

    def unembed(self, states_btd: jax.Array) -> jax.Array:
        """[b, t, v] float32 logits of final states, capped: for sampling, never for the loss."""
        table_vd = gather(share(self.embedding.table[...]), states_btd.dtype)
        logits_btv = jnp.einsum(
            "btd,vd->btv", states_btd, table_vd, preferred_element_type=jnp.float32
        )
        cap = self.config.final_soft_cap
        return logits_btv if cap is None else cap * jnp.tanh(logits_btv / cap)

    def logits(
        self,
        tokens_bt: jax.typing.ArrayLike,
        positions_bt: jax.typing.ArrayLike | None = None,
        segment_ids_bt: jax.typing.ArrayLike | None = None,
        *,
        image_embeddings: jax.typing.ArrayLike | None = None,
        image_index_bt: jax.typing.ArrayLike | None = None,
    ) -> jax.Array:
        """[b, t, v] float32 logits of these tokens, soft cap applied: a call by itself.

        Integers of shape [b, t]: segments as in packed rows (1, 2, ...; 0 is padding), one if not
        given; positions count within each segment if not given. Images come as `encode_images`
        gives them, [images, tokens, vision width], with the image of each position, -1 for text:
        the soft tokens of an image fill its positions in order. Runs on the mesh in force, or else
        on that of the parameters. Raises `UserError` for shapes, ids and images that cannot be.
        """
        inputs, images = checked_inputs(
            self.config,
            tokens_bt,
            positions_bt,
            segment_ids_bt,
            image_embeddings=image_embeddings,
            image_index_bt=image_index_bt,
        )
        with mesh_of(self):
            return _logits(self, *inputs, images)

    def encode_images(self, pixels: jax.typing.ArrayLike) -> jax.Array:
        """[images, tokens, vision width] embeddings, pooled, ahead of their norm and projection.

        Of pixels [images, side, side, 3] from -1 to 1. Raises `UserError` for a model that came
        without its encoder, and for images of another size.
        """
        if self.encoder is None:
            raise UserError("this model came without its vision encoder: load one that has it")
        pixels = checked_pixels(self.config, pixels)
        with mesh_of(self):
            return encode(self.encoder, pixels)

    def parameters(self) -> dict[str, jax.Array]:
        """Every parameter by its path, such as 'pattern/0/attention/query' [l, d, n, h]."""
        return by_path(self)


# Of models that came with one, for as long as they live. Among a model's own attributes it would be
# trained, or kept alive by every program that was compiled for it.
_ENCODERS: WeakKeyDictionary[Gemma, Siglip] = WeakKeyDictionary()


@jax.jit
def _logits(model: Gemma, tokens_bt, positions_bt, segments_bt, embedded=None) -> jax.Array:
    inputs, images = packing(tokens_bt, positions_bt, segments_bt), None
    if embedded is not None:
        images = images_of(*embedded)
    states_btd, _ = model(*(reshard(x_bt, activation("bt")) for x_bt in inputs), images=images)
    logits_btv = model.unembed(states_btd)
    alone = jax.sharding.get_abstract_mesh().size == 1  # then indexing it needs no mesh
    return whole(logits_btv) if alone else logits_btv


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """A LayerCache for each block of the pattern (stacked over repetitions) and the remainder."""

    pattern: list[LayerCache]
    remainder: list[LayerCache]

    @classmethod
    def empty(cls, config: GemmaConfig, batch: int, length: int, dtype: str) -> "Cache":
        """Room for `length` tokens a row on global layers, for the window on local ones."""
        repetitions, left_over = divmod(config.layers, len(config.pattern))

        def layer(kind: Kind) -> LayerCache:
            slots = min(length, config.window or length) if kind == "local" else length
            return LayerCache.empty(batch, slots, config, dtype)

        def stacked(kind: Kind) -> LayerCache:
            return jax.tree.map(lambda x: jnp.stack([x] * repetitions), layer(kind))

        return cls(
            pattern=[stacked(kind) for kind in config.pattern if repetitions],
            remainder=[layer(kind) for kind in config.pattern[:left_over]],
        )


def shared(model: Gemma) -> Gemma:
    """The model with all but its table shared, ahead of a step's microbatches.

    Their gradients then come unsummed: `zero3.summed` once is for all microbatches.
    """

    def prepared(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "embedding" in name:
            return leaf
        return whole(leaf) if "norm" in name else share(leaf)

    return jax.tree_util.tree_map_with_path(prepared, model)


def _prepared(blocks: nnx.List, vector_rank: int) -> nnx.List:
    """Blocks ready for use: matrices declared shared, norm scales (of this rank) made whole."""
    return jax.tree.map(lambda w: whole(w) if w.ndim == vector_rank else share(w), blocks)


def _train_through(
    compute: ComputeConfig,
    x_btd: jax.Array,
    places: Places,
    pattern: nnx.List,
    remainder: nnx.List,
) -> jax.Array:
    """All layers without a cache: a scan over repetitions and, where asked, one over neighbours.

    Neighbours are stacked ahead of both scans: inside, each repetition's stack would be kept for
    the backward pass.
    """
    run, dtype = rematerialised(_run, compute), x_btd.dtype
    repeated = [_Neighbours(group, dtype, axis=1) for group in _grouped(pattern, compute)]
    alone = [_Neighbours(group, dtype, axis=0) for group in _grouped(remainder, compute)]

    def layers(x_btd, groups: list["_Neighbours"], weights: list):
        for group, stack in zip(groups, weights, strict=True):
            if group.count > 1:
                x_btd, _ = jax.lax.scan(
                    lambda x_btd, one, group=group: run(group.block(one), x_btd, places),
                    x_btd,
                    stack,
                )
            else:
                x_btd, _ = run(stack, x_btd, places)
        return x_btd

    if repeated:
        x_btd, _ = jax.lax.scan(
            lambda x_btd, weights: (layers(x_btd, repeated, weights), None),
            x_btd,
            [group.weights for group in repeated],
        )
    return layers(x_btd, alone, [group.weights for group in alone])


def _grouped(blocks: nnx.List, compute: ComputeConfig) -> list[list[Block]]:
    """The blocks one by one or, where they are to be scanned, with their neighbours of one kind."""
    if not compute.scan_neighbours:
        return [[block] for block in blocks]
    return [list(group) for _, group in groupby(blocks, key=lambda block: block.attention.kind)]


class _Neighbours:
    """Equal blocks that follow each other: one as it is, several with their weights stacked."""

    def __init__(self, blocks: list[Block], dtype: jax.typing.DTypeLike, *, axis: int):
        self.count, self.weights = len(blocks), blocks[0]
        if self.count > 1:
            leaves = zip(*map(jax.tree.leaves, blocks), strict=True)
            self._structure = jax.tree.structure(blocks[0])
            stacks = [
                # Matrices in the dtype in which they are gathered; norms are as they are.
                stacked([w.astype(dtype) if w.ndim > axis + 1 else w for w in weights], axis)
                for weights in leaves
            ]
            self.weights = [stack for stack, _ in stacks]
            self._split_at = [place for _, place in stacks]

    def block(self, weights: list[jax.Array]) -> Block:
        """One block again, from its slice of each stack."""
        places = zip(weights, self._split_at, strict=True)
        return self._structure.unflatten([jnp.moveaxis(w, 0, place) for w, place in places])


def _run(block: Block, *arguments):
    return block(*arguments)
