"""The frozen image encoder that a recipe names: weights in a folder, or small random ones."""

from collections.abc import Callable

from flax import nnx

from gemma_train import storage
from gemma_train.conversion.encoder import encoder_sha256, load_encoder, save_encoder
from gemma_train.data.images.store import Head
from gemma_train.data.recipe import RandomEncoder, Recipe
from gemma_train.errors import UserError, require
from gemma_train.model.siglip import Siglip


def encoder_folder(recipe: Recipe, say: Callable[[str], None] = print) -> str:
    """The folder of the recipe's encoder; a random one is drawn and saved where it is missing.

    Raises `UserError` for a recipe of text alone, and for a folder whose encoder is not the random
    one that the recipe asks for.
    """
    if recipe.images is None:
        raise UserError(
            f"recipe {recipe.name!r} has no images: add an ImageTextSource and "
            "images=ImageEncoding(encoder=...)"
        )
    asked = recipe.images.encoder
    if isinstance(asked, str):
        return asked
    folder = f"{recipe.folder}/encoder"
    drawn = _drawn(asked)
    if not storage.path(folder).exists():
        storage.path(recipe.folder).mkdir(parents=True, exist_ok=True)
        save_encoder(drawn, folder)
        say(f"{folder}: an encoder with random weights, of seed {asked.seed}")
    there, here = encoder_sha256(load_encoder(folder)), encoder_sha256(drawn)
    require(
        there == here,
        f"images.encoder: {folder!r} holds encoder {there[:12]}..., and this RandomEncoder is "
        f"{here[:12]}...: remove that folder, or name it as the encoder",
    )
    return folder


def head_of(encoder: Siglip, folder: str) -> Head:
    """What a store says of the encoder that made it."""
    config = encoder.config
    return Head(
        encoder_sha256=encoder_sha256(encoder),
        encoder=folder,
        side=config.side,
        tokens=config.tokens,
        width=config.width,
    )


def _drawn(asked: RandomEncoder) -> Siglip:
    return Siglip(asked.vision, nnx.Rngs(asked.seed))
