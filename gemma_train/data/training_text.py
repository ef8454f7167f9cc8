"""The text that a recipe's tokenizer learns from: a share of every source, by its size."""

import hashlib
from collections.abc import Iterator

from gemma_train import storage
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.data.sources import Skipped, documents, estimated_bytes, source_files
from gemma_train.errors import require
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import train_tokenizer


def is_held_out(text: str, source: TextSource) -> bool:
    """Whether a document is kept for evaluation: by its content, so that its copies are too."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < source.held_out_fraction * 2**64


def recipe_tokenizer(recipe: Recipe) -> tuple[Tokenizer, bool]:
    """The recipe's tokenizer, and whether it was trained just now because it did not exist.

    Raises `UserError` when one exists at that path with another size of vocabulary.
    """
    path = recipe.tokenizer_path
    missing = not isinstance(recipe.tokenizer, str) and not storage.path(path).exists()
    if missing:
        train_tokenizer(training_texts(recipe), recipe.tokenizer, storage.path(path))
    tokenizer = Tokenizer.load(path)
    wanted = (
        tokenizer.vocabulary if isinstance(recipe.tokenizer, str) else recipe.tokenizer.vocabulary
    )
    require(
        tokenizer.vocabulary == wanted,
        f"tokenizer {path!r} has {tokenizer.vocabulary:,} pieces, recipe {recipe.name!r} asks for "
        f"{wanted:,}: remove the file to train it anew, or name another path",
    )
    return tokenizer, missing


def training_texts(recipe: Recipe) -> Iterator[str]:
    """Training documents of every source, up to its share of `maximum_training_bytes`.

    A source's files are taken in an order that looks random and is always the same, so that a part
    of them stands for all.
    """
    files = [source_files(source) for source in recipe.sources]
    sizes = [estimated_bytes(*pair) for pair in zip(recipe.sources, files, strict=True)]
    for source, found, size in zip(recipe.sources, files, sizes, strict=True):
        left = recipe.tokenizer.maximum_training_bytes * size // max(1, sum(sizes))
        found.sort(key=lambda file: hashlib.blake2b(str(file).encode()).digest())
        for text, size in documents(source, found, Skipped()):
            if left <= 0:
                break
            if not is_held_out(text, source):
                left -= size
                yield text
