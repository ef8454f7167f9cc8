"""SigLIP, the frozen vision encoder of Gemma 3: pixels to the pooled embeddings of soft tokens.

A plain vision transformer (arXiv 2303.15343): patches, learned positions, layers that all patches
see both ways, biases everywhere, no class token. Gemma averages squares of the final grid, 4 x 4 of
64 x 64, to 256 embeddings an image; their norm and projection belong to the language model.
Sources: Gemma 3 report (2503.19786) 2.1; google-deepmind/gemma, gm/nn/vision; transformers,
models/siglip/modeling_siglip.py.
"""

from functools import partial
from math import isqrt

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import MESH_AXES
from gemma_train.vision import VisionConfig

COLOURS = 3
EPSILON = 1e-6
SCORE_BYTES = 2**30  # of attention at one time, on each device: so many images go together


class SiglipLayer(nnx.Module):
    """Attention and feed-forward, each behind a LayerNorm, with biases."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width, heads = config.width, config.heads
        head = width // heads
        norm = partial(nnx.LayerNorm, width, epsilon=EPSILON, rngs=rngs)
        into_heads = partial(nnx.LinearGeneral, width, (heads, head), rngs=rngs)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.query, self.key, self.value = into_heads(), into_heads(), into_heads()
        self.output = nnx.LinearGeneral((heads, head), width, axis=(-2, -1), rngs=rngs)
        self.up = nnx.Linear(width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, width, rngs=rngs)

    def __call__(self, x_ipe: jax.Array) -> jax.Array:
        normed_ipe = self.attention_norm(x_ipe)
        products = self.query(normed_ipe), self.key(normed_ipe), self.value(normed_ipe)
        x_ipe = x_ipe + self.output(jax.nn.dot_product_attention(*products))
        hidden_ipf = jax.nn.gelu(self.up(self.feed_forward_norm(x_ipe)), approximate=True)
        return x_ipe + self.down(hidden_ipf)


class Siglip(nnx.Module):
    """The encoder; its layers are stacked, and a scan runs over them."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.config = config
        window = (config.patch, config.patch)
        self.patches = nnx.Conv(
            COLOURS, config.width, window, strides=window, padding="VALID", rngs=rngs
        )
        draws = jax.random.normal(rngs.params(), (config.patches, config.width))
        self.positions = nnx.Param(draws * config.width**-0.5)
        keys = jax.random.split(rngs.params(), config.layers)
        self.layers = jax.vmap(lambda key: SiglipLayer(config, nnx.Rngs(key)))(keys)
        self.final_norm = nnx.LayerNorm(config.width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[images, tokens, width] pooled embeddings of pixels [images, side, side, 3] in [-1, 1].

        In the dtype of the parameters, but for norms and softmax, which are float32 inside.
        """
        return _pooled(self.states(pixels), self.config)

    def states(self, pixels: jax.Array) -> jax.Array:
        """[images, patches, width] final normed states of the same, ahead of the pooling."""
        embedded = self.patches(pixels.astype(self.positions.dtype))
        x_ipe = embedded.reshape(len(pixels), *self.positions.shape) + self.positions[...]
        x_ipe, _ = jax.lax.scan(lambda x_ipe, layer: (layer(x_ipe), None), x_ipe, self.layers)
        return self.final_norm(x_ipe)


def _pooled(x_ipe: jax.Array, config: VisionConfig) -> jax.Array:
    """The means over squares of the grid, row by row: as many as an image has soft tokens."""
    images, _, width = x_ipe.shape
    side = isqrt(config.tokens)
    square = config.grid // side
    squares = x_ipe.reshape(images, side, square, side, square, width)
    return jnp.mean(squares, axis=(2, 4)).reshape(images, config.tokens, width)


@jax.jit
def encode(encoder: Siglip, pixels: jax.Array) -> jax.Array:
    """The same on the mesh in force: images split over all its devices, blank ones filling up.

    A few images at a time, so that memory does not grow with their number.
    """
    config, spread = encoder.config, PartitionSpec(MESH_AXES)
    images, devices = len(pixels), jax.sharding.get_abstract_mesh().size
    pixels = jnp.pad(pixels, ((0, -images % devices), (0, 0), (0, 0), (0, 0)))
    together = max(SCORE_BYTES // (4 * config.heads * config.patches**2), 1)

    def on_one_device(encoder: Siglip, pixels: jax.Array) -> jax.Array:
        at_once = min(together, len(pixels))
        return jax.lax.map(lambda image: encoder(image[None])[0], pixels, batch_size=at_once)

    embedded_ipe = jax.shard_map(
        on_one_device, in_specs=(PartitionSpec(), spread), out_specs=spread, check_vma=False
    )(encoder, reshard(pixels, spread))
    return reshard(embedded_ipe, PartitionSpec())[:images]
