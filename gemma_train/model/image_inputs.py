"""Images as a call by itself is given them: pixels, or embeddings and the places of each image."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig
from gemma_train.model.packing import checked
from gemma_train.model.soft_tokens import Images
from gemma_train.vision import VisionConfig


def checked_inputs(
    config: GemmaConfig,
    tokens_bt: jax.typing.ArrayLike,
    positions_bt: jax.typing.ArrayLike | None,
    segment_ids_bt: jax.typing.ArrayLike | None,
    *,
    image_embeddings: jax.typing.ArrayLike | None,
    image_index_bt: jax.typing.ArrayLike | None,
) -> tuple[list[jax.Array | None], tuple[jax.Array, jax.Array] | None]:
    """(`packing.checked` of the tokens, `checked_images` of the images).

    Tokens in the place of soft ones become 0: they are never looked up, and no targets.
    """
    tokens_bt = np.asarray(tokens_bt) if not isinstance(tokens_bt, jax.Array) else tokens_bt
    images = checked_images(config, tokens_bt.shape, image_embeddings, image_index_bt)
    if images is not None:
        tokens_bt = jnp.where(images[1] >= 0, 0, tokens_bt)
    return checked(config, tokens_bt, positions_bt, segment_ids_bt), images


def checked_pixels(config: GemmaConfig, pixels: jax.typing.ArrayLike) -> jax.Array:
    """Pixels as an array. Raises `UserError` for shapes and values that no image of it has."""
    vision = _vision(config)
    array = pixels if isinstance(pixels, jax.Array) else np.asarray(pixels)
    shape = (vision.side, vision.side, 3)
    if array.shape[1:] != shape or array.ndim != 4 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"pixels are {array.dtype} {array.shape}: give floats {('images', *shape)}, resized, "
            "from -1 to 1"
        )
    if not isinstance(array, jax.core.Tracer) and array.size:
        low, high = float(array.min()), float(array.max())
        require(
            low >= -1 and high <= 1,
            f"pixels go from {low:g} to {high:g}: divide bytes by 127.5 and subtract 1",
        )
    return jnp.asarray(array)


def checked_images(
    config: GemmaConfig,
    shape_bt: tuple[int, ...],
    embeddings_ipe: jax.typing.ArrayLike | None,
    index_bt: jax.typing.ArrayLike | None,
) -> tuple[jax.Array, jax.Array] | None:
    """(embeddings, image of each position), or None for text alone.

    Raises `UserError` for what cannot be; positions are looked at where they are known, not in a
    trace.
    """
    if embeddings_ipe is None and index_bt is None:
        return None
    if embeddings_ipe is None or index_bt is None:
        raise UserError("image embeddings and image_index_bt go together: give both or neither")
    vision, embeddings_ipe = _vision(config), jnp.asarray(embeddings_ipe)
    index_bt = index_bt if isinstance(index_bt, jax.Array) else np.asarray(index_bt)
    expected = (vision.tokens, vision.width)
    floats = jnp.issubdtype(embeddings_ipe.dtype, jnp.floating)
    if embeddings_ipe.ndim != 3 or embeddings_ipe.shape[1:] != expected or not floats:
        raise UserError(
            f"image embeddings are {embeddings_ipe.dtype} {embeddings_ipe.shape}: give floats "
            f"{('images', *expected)}"
        )
    if index_bt.shape != shape_bt or not jnp.issubdtype(index_bt.dtype, jnp.integer):
        raise UserError(
            f"image_index_bt is {index_bt.dtype} {index_bt.shape}: give integers {shape_bt}, "
            "as tokens are"
        )
    if not isinstance(index_bt, jax.core.Tracer):
        _check_places(np.asarray(index_bt), len(embeddings_ipe), vision)
    if not len(embeddings_ipe):
        return None
    return embeddings_ipe, jnp.asarray(index_bt, jnp.int32)


def _check_places(index_bt: np.ndarray, images: int, vision: VisionConfig) -> None:
    """Every image of a row has all its soft tokens there, one after the other."""
    for number, row in enumerate(index_bt):
        for image in np.unique(row[row >= 0]):
            require(
                image < images,
                f"image_index_bt names image {image} in row {number}, but there are {images}",
            )
            places = np.flatnonzero(row == image)
            require(
                len(places) == vision.tokens and np.ptp(places) == vision.tokens - 1,
                f"image_index_bt gives image {image} {len(places)} positions in row {number}, from "
                f"{places[0]} to {places[-1]}: it has {vision.tokens} soft tokens, which follow "
                "each other",
            )


def images_of(embeddings_ipe: jax.Array, index_bt: jax.Array) -> Images:
    """The same as the images of every row, placed: all of them, in the order given."""
    images, tokens, _ = embeddings_ipe.shape
    is_image = index_bt[..., None] == jnp.arange(images)
    earlier_bt = jnp.sum(jnp.cumsum(is_image, axis=1) * is_image, axis=2) - 1
    soft_bt = jnp.where(index_bt >= 0, index_bt * tokens + earlier_bt, -1)
    every_bipe = jnp.broadcast_to(embeddings_ipe, (len(index_bt), *embeddings_ipe.shape))
    return Images(
        embeddings_bipe=reshard(every_bipe, activation("bipe")),
        soft_bt=reshard(soft_bt, activation("bt")),
    )


def _vision(config: GemmaConfig) -> VisionConfig:
    if config.vision is None:
        raise UserError("this model sees no images: it has no model.vision")
    return config.vision
