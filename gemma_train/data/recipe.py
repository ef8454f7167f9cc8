"""A recipe: which texts and images become which dataset: a Python file ending in `recipe = ...`.

A recipe is the user's own Python, so that it can look for files or compute patterns before it
states what to prepare; the dataclasses hold plain values and are stored with what they made.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from gemma_train.checked import check_fields
from gemma_train.data.images.decoding import ImageLimits
from gemma_train.data.images.views import PanAndScan
from gemma_train.definition import load_definition
from gemma_train.errors import require
from gemma_train.tokenizer.training import TokenizerConfig
from gemma_train.vision import VisionConfig

Format = Literal["text", "jsonl", "parquet"]
ImageFormat = Literal["files", "webdataset", "parquet", "jsonl"]


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
        where = _check_source(self, get_args(Format))
        require(
            self.minimum_characters >= 1,
            f"{where}: minimum_characters is {self.minimum_characters}: must be at least 1",
        )
        require(
            self.maximum_bytes is None or self.maximum_bytes > 0,
            f"{where}: maximum_bytes is {self.maximum_bytes}: must be above 0, or None for all",
        )


@dataclass(frozen=True, kw_only=True)
class ImageTextSource:
    """Images with texts, of one origin and one licence.

    files: image files, each with its caption beside it (cat.png, cat.txt). webdataset: tar archives
    of such pairs, or with the caption in a JSON object. parquet: a column of image files and one of
    texts. jsonl: documents of both, as in
    {"content": [{"text": "A cat:"}, {"image": "pictures/cat.png"}, {"text": "It sleeps."}]}, paths
    from the file's own folder on.
    """

    name: str  # how reports and the dataset's sidecar call it
    files: tuple[str, ...]  # paths or patterns such as "photos/*.jpg", local or gs://
    licence: str  # SPDX identifier or a few words; recorded with the dataset
    format: ImageFormat = "files"  # files, webdataset, parquet, jsonl
    caption_suffix: str = ".txt"  # of the file beside an image (files)
    text_field: str = "text"  # the field or column that holds the text (webdataset, parquet)
    image_field: str = "image"  # the column of images: bytes, or Hugging Face's struct (parquet)
    held_out_fraction: float = 0.01  # share of the documents kept for evaluation, by first image
    maximum_documents: int | None = None  # stop after so many
    limits: ImageLimits = ImageLimits()  # which images are taken
    damaged: Literal["count", "refuse"] = "count"  # an image that is not: count, or end with it

    def __post_init__(self):
        where = _check_source(self, get_args(ImageFormat))
        require(
            self.maximum_documents is None or self.maximum_documents > 0,
            f"{where}: maximum_documents is {self.maximum_documents}: must be above 0, or None for "
            "all",
        )
        require(
            self.caption_suffix.startswith("."),
            f"{where}: caption_suffix is {self.caption_suffix!r}: begin it with a dot, like '.txt'",
        )


Source = TextSource | ImageTextSource


def _check_source(source: Source, formats: tuple[str, ...]) -> str:
    """Check what all sources have. Returns how messages call the source."""
    where = f"source {source.name!r}"
    require(bool(source.name), "a source has an empty name")
    require(
        isinstance(source.files, tuple) and bool(source.files),
        f"{where}: files is {source.files!r}: give a tuple of patterns, as in ('corpus/*.txt',)",
    )
    require(bool(source.licence), f"{where}: licence is empty: name one, or 'unknown'")
    require(
        source.format in formats,
        f"{where}: format is {source.format!r}: choose one of {', '.join(formats)}",
    )
    require(
        0 <= source.held_out_fraction < 1,
        f"{where}: held_out_fraction is {source.held_out_fraction}: must be from 0 to below 1",
    )
    return where


@dataclass(frozen=True, kw_only=True)
class RandomEncoder:
    """A small image encoder that nobody trained: its weights are random. To try things out with."""

    vision: VisionConfig  # its size
    seed: int = 0  # of its weights


@dataclass(frozen=True, kw_only=True)
class ImageEncoding:
    """How images become the embeddings that a model is trained on, once, ahead of it."""

    encoder: str | RandomEncoder  # the folder of a SigLIP's weights, or one to draw
    folder: str | None = None  # gets the embeddings; images/ in the recipe's folder if None
    pan_and_scan: PanAndScan | None = None  # crops of long pictures beside the whole; None: none

    def __post_init__(self):
        for name in ("encoder", "folder"):
            value = getattr(self, name)
            require(value != "", f"images.{name} is empty: name a folder")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sources that become one training dataset and one held-out dataset."""

    name: str  # how reports call it
    folder: str  # gets train/ and held_out/
    tokenizer: TokenizerConfig | str  # one to train, or the path of a .model file that exists
    sources: tuple[TextSource | ImageTextSource, ...]  # in the order of their documents on disk
    images: ImageEncoding | None = None  # how the images of sources are encoded; None: text alone
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
            f"recipe {self.name!r}: sources is {self.sources!r}: give a tuple of TextSource and "
            "ImageTextSource",
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
        seen = [source.name for source in self.sources if isinstance(source, ImageTextSource)]
        require(
            self.images is not None or not seen,
            f"recipe {self.name!r}: source {seen[0] if seen else ''!r} has images: say with "
            "images=ImageEncoding(encoder=...) what encodes them",
        )
        require(
            self.images is None or bool(seen),
            f"recipe {self.name!r}: images is given, and no source is an ImageTextSource: add one, "
            "or leave images out",
        )

    @property
    def image_folder(self) -> str:
        """Where the embeddings of its images are."""
        own = self.images.folder if self.images else None
        return own or f"{self.folder}/images"


def load_recipe(path: str) -> Recipe:
    """Run the recipe file and return its `recipe`. Raises `UserError`, naming file and line."""
    return load_definition(path, "recipe", Recipe)
