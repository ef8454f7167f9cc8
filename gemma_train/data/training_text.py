"""The text that a recipe's tokenizer learns from: a share of every source, by its size."""

import hashlib
from collections.abc import Iterator, Sequence

from gemma_train import storage
from gemma_train.data.document import Skipped
from gemma_train.data.recipe import Recipe, Source
from gemma_train.data.sources import documents, estimated_bytes, source_files
from gemma_train.errors import require
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import train_tokenizer


def is_held_out(content: bytes, source: Source) -> bool:
    """Whether a document is kept for evaluation: by its content, so that its copies are too."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest) < source.held_out_fraction * 2**64


def recipe_tokenizer(recipe: Recipe) -> tuple[Tokenizer, bool]:
    """The recipe's tokenizer, and whether it was trained just now because it did not exist.

    Raises `UserError` when one exists at that path with another size of vocabulary.
    """
    config = recipe.tokenizer
    if isinstance(config, str):
        return Tokenizer.load(config), False
    target = storage.path(config.path)
    missing = not target.exists()
    if missing:
        texts = training_texts(recipe.sources, config.maximum_training_bytes)
        train_tokenizer(texts, config, target)
    tokenizer = Tokenizer.load(config.path)
    require(
        tokenizer.vocabulary == config.vocabulary,
        f"tokenizer {config.path!r} has {tokenizer.vocabulary:,} pieces, recipe {recipe.name!r} "
        f"asks for {config.vocabulary:,}: remove the file to train it anew, or name another path",
    )
    return tokenizer, missing


def training_texts(sources: Sequence[Source], maximum_bytes: int) -> Iterator[str]:
    """Training documents of every source, up to its share of `maximum_bytes`.

    A source's files are taken in an order that looks random and is always the same, so that a part
    of them stands for all.
    """
    files = [source_files(source) for source in sources]
    sizes = [estimated_bytes(*pair) for pair in zip(sources, files, strict=True)]
    for source, found, size in zip(sources, files, sizes, strict=True):
        left = maximum_bytes * size // max(1, sum(sizes))
        found.sort(key=lambda file: hashlib.blake2b(str(file).encode()).digest())
        for document in documents(source, found, Skipped()):
            if left <= 0:
                break
            if not is_held_out(document.content, source):
                left -= document.size
                yield document.text
