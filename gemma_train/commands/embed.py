"""`gemma-train embed RECIPE`: a recipe's images, as the embeddings that a model is trained on."""

import os
import time
from dataclasses import dataclass

import jax

from gemma_train.data.images.store import EmbeddingStore, verify
from gemma_train.data.recipe import load_recipe
from gemma_train.encoders.embed import Pace, embed
from gemma_train.encoders.encoder import recipe_encoder
from gemma_train.errors import require
from gemma_train.mesh import MeshConfig, make_mesh, start_runtime
from gemma_train.metrics.wording import byte_count


# `recipe` is positional on the command line.
@dataclass(frozen=True, kw_only=True)
class EmbedArguments:
    """Encode every image of a recipe once, with its frozen encoder, on all of this host's devices.

    Killed, it goes on where it was; images that are added later are added.
    """

    recipe: str  # the recipe file, such as data_recipes/quickstart_images.py
    threads: int = os.cpu_count() or 1  # threads that decode; the result does not depend on it
    batch_images: int = 32  # images encoded together; last bits may depend on it
    shard_images: int = 256  # images written together: what a kill costs at most
    verify: bool = False  # read everything back at the end and compare checksums

    def __post_init__(self) -> None:
        for name in ("threads", "batch_images", "shard_images"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}: must be at least 1")


def run(arguments: EmbedArguments) -> None:
    """Write what the store lacks, or say that it lacks nothing. Raises `UserError`."""
    recipe = load_recipe(arguments.recipe)
    began = time.monotonic()
    start_runtime(MeshConfig())
    pace = Pace(
        threads=arguments.threads,
        batch_images=arguments.batch_images,
        shard_images=arguments.shard_images,
    )
    with jax.set_mesh(make_mesh(MeshConfig(data=len(jax.devices())))):
        embed(recipe, *recipe_encoder(recipe), pace)
    store = EmbeddingStore(recipe.image_folder)
    size = len(store) * store.head.record_bytes
    print(
        f"{store.folder}: {len(store):,} pictures, each {store.head.tokens} x {store.head.width} "
        f"bfloat16, {byte_count(size)}; of encoder {store.head.encoder_sha256[:12]}..., "
        f"{store.head.encoder}, which is kept beside them"
    )
    if arguments.verify:
        verify(store.folder)
        print("checksums: all equal")
    print(f"done in {time.monotonic() - began:.0f} s")
