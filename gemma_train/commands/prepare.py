"""gemma-train prepare: a recipe's tokenizer, if it is missing, and its datasets."""

import os
import time
from dataclasses import dataclass

from gemma_train.data.prepare import HELD_OUT, TRAIN, prepare, prepared
from gemma_train.data.recipe import load_recipe
from gemma_train.data.shards import Description, verify
from gemma_train.data.training_text import recipe_tokenizer
from gemma_train.errors import require


# `recipe` is positional on the command line.
@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Turn a recipe's texts into token datasets; train its tokenizer first if it is missing.

    Where it has images, run gemma-train embed before: here they get their places among the tokens.
    """

    recipe: str  # the recipe file, such as data_recipes/quickstart.py
    threads: int = os.cpu_count() or 1  # threads that tokenise; the result does not depend on it
    verify: bool = False  # read everything back afterwards and compare checksums

    def __post_init__(self):
        require(self.threads >= 1, f"threads is {self.threads}: must be at least 1")


def run(arguments: PrepareArguments) -> None:
    """Prepare the datasets, or say that they exist."""
    recipe = load_recipe(arguments.recipe)
    began = time.monotonic()
    tokenizer, trained = recipe_tokenizer(recipe)
    if trained:
        print(f"{tokenizer.name}: learned {tokenizer.vocabulary:,} pieces", flush=True)
    found = prepared(recipe, tokenizer)
    if existed := bool(found):
        print(f"{recipe.folder} was prepared before; to do it again, remove the folder first")
    else:
        found = prepare(recipe, tokenizer, threads=arguments.threads)
    for source in found[TRAIN].sources:
        print(f"    {source.name}: {source.tokens:,} tokens, licence {source.licence}")
    for part, description in found.items():
        print(_summary(f"{recipe.folder}/{part}", description))
    if HELD_OUT not in found:
        print("no document was held out: raise held_out_fraction to have something to evaluate on")
    if arguments.verify:
        for part in found:
            verify(f"{recipe.folder}/{part}")
        print("checksums: all equal")
    if not existed:
        print(f"done in {time.monotonic() - began:.0f} s")


def _summary(folder: str, description: Description) -> str:
    """Totals, in one line."""
    tokens, size = description.total("tokens"), description.total("bytes")
    images = f"{description.total('images'):,} images, " if description.image else ""
    return (
        f"{folder}: {tokens:,} tokens of {description.total('documents'):,} documents, {images}"
        f"{size / tokens:.2f} bytes a token, {tokens * 4 / 1e6:,.1f} MB on disk"
    )
