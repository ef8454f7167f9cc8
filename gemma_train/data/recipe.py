"""A recipe: which texts become which dataset, as a Python file that ends in `recipe = Recipe(...)`.

A recipe is the user's own Python, so that it can look for files or compute patterns before it
states what to prepare; the dataclasses hold plain values and are stored with what they made.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from gemma_train.checked import check_fields
from gemma_train.definition import load_definition
from gemma_train.errors import require
from gemma_train.tokenizer.training import TokenizerConfig

Format = Literal["text", "jsonl", "parquet"]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Files of documents of one origin and one licence."""

    name: str  # how reports and the dataset's sidecar call it
    files: tuple[str, ...]  # paths or patterns such as "corpus/**/*.jsonl.gz", local or gs://
    licence: str  # SPDX identifier or a few words; recorded with the dataset
    format: Format = "text"  # text: a file is a document; jsonl, parquet: a record is one
    text_field: str = "text"  # the field or column that holds the text (jsonl, parquet)
    held_out_fraction: float = 0.01  # share of the documents kept for evaluation, chosen by content
    minimum_characters: int = 1  # shorter documents are left out, and counted
    maximum_bytes: int | None = None  # stop before the source would exceed so many bytes of UTF-8

    def __post_init__(self):
        where = f"source {self.name!r}"
        require(bool(self.name), "a source has an empty name")
        require(
            isinstance(self.files, tuple) and bool(self.files),
            f"{where}: files is {self.files!r}: give a tuple of patterns, as in ('corpus/*.txt',)",
        )
        require(bool(self.licence), f"{where}: licence is empty: name one, or 'unknown'")
        require(
            self.format in get_args(Format),
            f"{where}: format is {self.format!r}: choose one of {', '.join(get_args(Format))}",
        )
        require(
            0 <= self.held_out_fraction < 1,
            f"{where}: held_out_fraction is {self.held_out_fraction}: must be from 0 to below 1",
        )
        require(
            self.minimum_characters >= 1,
            f"{where}: minimum_characters is {self.minimum_characters}: must be at least 1",
        )
        require(
            self.maximum_bytes is None or self.maximum_bytes > 0,
            f"{where}: maximum_bytes is {self.maximum_bytes}: must be above 0, or None for all",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sources that become one training dataset and one held-out dataset."""

    name: str  # how reports call it
    folder: str  # gets train/ and held_out/
    tokenizer: TokenizerConfig | str  # one to train, or the path of a .model file that exists
    sources: tuple[TextSource, ...]  # in the order of their documents on disk
    shard_tokens: int = 2**29  # a shard ends with the document that reaches this: 2 GiB

    def __post_init__(self):
        require(bool(self.folder), f"recipe {self.name!r}: folder is empty")
        require(
            isinstance(self.tokenizer, TokenizerConfig | str),
            f"recipe {self.name!r}: tokenizer is {self.tokenizer!r}: "
            "give a TokenizerConfig or a path",
        )
        require(
            isinstance(self.sources, tuple) and bool(self.sources),
            f"recipe {self.name!r}: sources is {self.sources!r}: give a tuple of TextSource",
        )
        names = [source.name for source in self.sources]
        require(
            len(set(names)) == len(names),
            f"recipe {self.name!r}: two sources have the same name, among {', '.join(names)}",
        )
        require(
            self.shard_tokens > 0,
            f"recipe {self.name!r}: shard_tokens is {self.shard_tokens}: must be above 0",
        )
        check_fields(self, "recipe")


def load_recipe(path: str) -> Recipe:
    """Run the recipe file and return its `recipe`. Raises `UserError`, naming file and line."""
    return load_definition(path, "recipe", Recipe)
