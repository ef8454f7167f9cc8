"""gemma-train tokenizer: train a recipe's tokenizer, or say that it exists."""

import time
from dataclasses import dataclass

from gemma_train.data.recipe import load_recipe
from gemma_train.data.training_text import recipe_tokenizer


# `recipe` is positional on the command line.
@dataclass(frozen=True, kw_only=True)
class TokenizerArguments:
    """Train the tokenizer that a recipe describes."""

    recipe: str  # the recipe file, such as data_recipes/quickstart.py


def run(arguments: TokenizerArguments) -> None:
    """Train the tokenizer, or say that it exists."""
    recipe = load_recipe(arguments.recipe)
    began = time.monotonic()
    tokenizer, trained = recipe_tokenizer(recipe)
    how = (
        f"trained in {time.monotonic() - began:.0f} s"
        if trained
        else "exists; to train it anew, remove the file first"
    )
    print(
        f"{tokenizer.name}: {tokenizer.vocabulary:,} pieces, "
        f"SHA-256 {tokenizer.sha256[:12]}..., {how}"
    )
