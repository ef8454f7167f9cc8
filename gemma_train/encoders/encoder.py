"""The frozen image encoder of a recipe: weights in a folder, or small random ones.

A store keeps its own beside the embeddings, to a thousandth of whose size it comes: whoever has the
store can show a trained model another image, and export it.
"""

from flax import nnx

from gemma_train import storage
from gemma_train.conversion.encoder import encoder_sha256, load_encoder, save_encoder
from gemma_train.data.images.store import Head
from gemma_train.data.recipe import RandomEncoder, Recipe
from gemma_train.errors import UserError, require
from gemma_train.model.siglip import Siglip
from gemma_train.run_files import ENCODER


def recipe_encoder(recipe: Recipe) -> tuple[Siglip, Head]:
    """The encoder on the mesh in force, and what a store says of it.

    Raises `UserError` for a recipe of text alone, and for a folder without an encoder.
    """
    if recipe.images is None:
        raise UserError(
            f"recipe {recipe.name!r} has no images: add an ImageTextSource and "
            "images=ImageEncoding(encoder=...)"
        )
    asked = recipe.images.encoder
    if isinstance(asked, RandomEncoder):
        encoder = Siglip(asked.vision, nnx.Rngs(asked.seed))
        return encoder, head_of(encoder, f"random weights of seed {asked.seed}")
    encoder = load_encoder(asked)
    return encoder, head_of(encoder, asked)


def head_of(encoder: Siglip, name: str) -> Head:
    """What a store says of the encoder that made it."""
    config = encoder.config
    return Head(
        encoder_sha256=encoder_sha256(encoder),
        encoder=name,
        side=config.side,
        tokens=config.tokens,
        width=config.width,
    )


def keep_beside(store: str, encoder: Siglip, head: Head) -> None:
    """Put the encoder into its store, where it is missing.

    Raises `UserError` where the one that is there is another, or damaged.
    """
    folder = f"{store}/{ENCODER}"
    if not storage.path(folder).exists():
        return save_encoder(encoder, folder)
    there = encoder_sha256(load_encoder(folder))
    require(
        there == head.encoder_sha256,
        f"{folder!r} holds encoder {there[:12]}..., and the embeddings beside it are of "
        f"{head.encoder_sha256[:12]}...: remove {folder!r} and run gemma-train embed again",
    )
