"""Tokens on disk: flat uint32 shards, int64 document starts, and one sidecar that is written last.

    tokens-00000.bin      ids, little-endian uint32, documents end to end
    tokens-00000.offsets  where each document starts in its shard, little-endian int64
    tokens-00000.images   where the soft tokens of each image start, and the SHA-256 of its file
    tokens-00000.checks   the CRC-32 of each block of these three, little-endian uint32
    dataset.json          the `Description`; a folder without it holds no dataset

Flat shards because any window of tokens is then one read, against 4.4 ms out of compressed records.
Documents never cross shards. A soft token has a place among the ids,
which holds 0; what stands there is in a store of embeddings. A write that is killed leaves no
sidecar, and the next one starts anew.
"""

import bisect
import os
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from etils import epath

from gemma_train import sidecar, storage
from gemma_train.data.blocks import CHECK, CheckedFile, RisingRecords, block_count
from gemma_train.errors import Damaged, require
from gemma_train.sidecar import Count, Positive

FORMAT_VERSION = 3
SIDECAR = "dataset.json"
IMAGE = np.dtype([("start", "<i8"), ("image", "V32")])  # packed: 40 bytes
TYPES = (np.dtype("<u4"), np.dtype("<i8"), IMAGE)
SUFFIXES = (".bin", ".offsets", ".images", ".checks")
_AGAIN = "remove its folder and run gemma-train prepare again"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Three files and their checks: counts and checksums. The sizes follow: 4, 8 and 40 B of each
    thing, 4 B of each block."""

    tokens: Count
    documents: Count
    images: Count
    tokens_sha256: str
    offsets_sha256: str
    images_sha256: str
    checks_sha256: str

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Bytes of each file."""
        counts = self.tokens, self.documents, self.images
        tokens, offsets, images = (n * t.itemsize for n, t in zip(counts, TYPES, strict=True))
        blocks = sum(map(block_count, (tokens, offsets, images)))
        return tokens, offsets, images, blocks * CHECK.itemsize

    @property
    def checksums(self) -> tuple[str, str, str, str]:
        """Of each file."""
        return self.tokens_sha256, self.offsets_sha256, self.images_sha256, self.checks_sha256


@dataclass(frozen=True, kw_only=True)
class ImageSpan:
    """How every image of a dataset stands among the tokens."""

    before: Count  # ids that lead in, such as a newline and the start of the image
    tokens: Positive  # soft tokens
    after: Count  # ids that close it

    @property
    def length(self) -> int:
        """Of the whole, which no row cuts."""
        return self.before + self.tokens + self.after


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What one source gave to a dataset."""

    name: str
    licence: str
    documents: Count
    tokens: Count  # with the <bos> and <eos> of every document
    bytes: Count  # of UTF-8
    characters: Count
    images: Count = 0


@dataclass(frozen=True, kw_only=True)
class Description:
    """The sidecar: what the dataset holds and what made it."""

    tokenizer_sha256: str
    vocabulary: Count
    image: ImageSpan | None  # None where there are none
    recipe: dict  # the recipe as plain values
    sources: tuple[SourceCounts, ...]
    shards: tuple[Shard, ...]

    def total(self, count: str) -> int:
        """The sum of `documents`, `tokens`, `bytes`, ... over the sources."""
        return sum(getattr(source, count) for source in self.sources)


class _OpenShard(NamedTuple):
    tokens: CheckedFile
    documents: RisingRecords
    images: RisingRecords


class TokenDataset:
    """A dataset opened for reading: all its shards as one stream of `len(self)` tokens.

    Opening checks the sidecar, every file's size and the checks themselves; what they are of is
    compared with them when it is read. 5 bytes of each 64 KiB stay in memory. Datasets that are
    read together share `files`. A copy in another process opens its own.
    """

    def __init__(self, folder: str, files: storage.OpenFiles | None = None):
        require("://" not in folder, f"dataset {folder!r} must be local: copy or mount the bucket")
        self.folder = folder
        self.description = read_description(folder)
        self._files = files or storage.OpenFiles()
        self._starts = [0, *accumulate(shard.tokens for shard in self.description.shards)]
        self._shards: dict[int, _OpenShard] = {}
        check_sizes(folder, self.description)
        for number in range(len(self.description.shards)):
            self._shard(number)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": {}}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [start, stop) as uint32, where in them documents start, and images: `IMAGE`.

        Of images are told whose soft tokens begin there. Raises `Damaged`, naming the file and the
        block, where they are not what was written.
        """
        stop = min(stop, len(self))
        parts = []
        number = bisect.bisect_right(self._starts, start) - 1
        while number < len(self._starts) - 1 and self._starts[number] < stop:
            base, shard = self._starts[number], self._shard(number)
            first, last = max(0, start - base), min(stop, self._starts[number + 1]) - base
            tokens = np.frombuffer(shard.tokens.read(4 * first, 4 * last), TYPES[0])
            offsets = shard.documents.between(first, last)
            images = shard.images.between(first, last)
            for places in (offsets, images["start"]):
                self._check_places(places, first, last, number)
            if images.size:
                images = images.copy()
                images["start"] += base - start
            parts.append((tokens, offsets + (base - start), images))
            number += 1
        if len(parts) == 1:
            return parts[0]
        tokens, starts, images = (np.concatenate(part) for part in zip(*parts, strict=True))
        return tokens, starts, images

    def document_starts(self) -> np.ndarray:
        """int64: where every document starts in the stream, in rising order."""
        every = [np.zeros(0, np.int64)]
        for number, base in enumerate(self._starts[:-1]):
            starts, tokens = self._shard(number).documents.all(), self._starts[number + 1] - base
            self._check_places(starts, 0, tokens, number)
            every.append(starts + base)
        return np.concatenate(every)

    def image_starts(self) -> np.ndarray:
        """int64: where the soft tokens of every image start in the stream, in rising order."""
        every = [np.zeros(0, np.int64)]
        for number, base in enumerate(self._starts[:-1]):
            starts = self._shard(number).images.all()["start"]
            self._check_places(starts, 0, self._starts[number + 1] - base, number)
            every.append(starts + base)
        return np.concatenate(every)

    def _check_places(self, places: np.ndarray, first: int, stop: int, number: int) -> None:
        """Raise `Damaged` unless places within a shard rise from `first` to below `stop`."""
        if not places.size:
            return
        is_rising = bool((places[1:] > places[:-1]).all())
        if not (is_rising and places[0] >= first and places[-1] < stop):
            file = shard_files(storage.path(self.folder), number)[0]
            raise Damaged(
                f"what is told of documents or images of {str(file)!r} is no rising order of "
                f"places from {first:,} to below {stop:,}: {_AGAIN}"
            )

    def _shard(self, number: int) -> _OpenShard:
        if number not in self._shards:
            self._shards[number] = self._opened(number)
        return self._shards[number]

    def _opened(self, number: int) -> _OpenShard:
        shard = self.description.shards[number]
        *files, checks_file = shard_files(storage.path(self.folder), number)
        checks, used, opened = (
            storage.checked_bytes(checks_file, shard.checks_sha256, _AGAIN),
            0,
            [],
        )
        for file, size in zip(files, shard.sizes, strict=False):
            end = used + CHECK.itemsize * block_count(size)
            opened.append(
                CheckedFile(
                    self._files, os.fspath(file), size=size, checks=checks[used:end], cure=_AGAIN
                )
            )
            used = end
        tokens, offsets, images = opened
        return _OpenShard(
            tokens, RisingRecords(offsets, TYPES[1]), RisingRecords(images, IMAGE, "start")
        )


def read_description(folder: str) -> Description:
    """Read the sidecar. Raises `UserError` when it is missing, garbled or of another version."""
    file = storage.path(folder) / SIDECAR
    require(
        file.exists(),
        f"{folder!r} holds no finished dataset (no {SIDECAR}): run gemma-train prepare",
    )
    return sidecar.read(file, Description, FORMAT_VERSION, _AGAIN)


def sidecar_sha256(folder: str) -> str:
    """The checksum of a dataset's sidecar, and so of all its files: what tells it from others."""
    return storage.sha256(storage.existing(f"{folder}/{SIDECAR}", "dataset"))


def check_tokenizer(folder: str, description: Description, tokenizer: str, sha256: str) -> None:
    """Raise `UserError` unless the dataset was written with the tokenizer of this checksum."""
    require(
        description.tokenizer_sha256 == sha256,
        f"dataset {folder!r} was made with tokenizer {description.tokenizer_sha256[:12]}..., "
        f"but {tokenizer!r} is {sha256[:12]}...: name the other tokenizer, or another dataset",
    )


def check_sizes(folder: str, description: Description) -> None:
    """Raise `UserError` unless every shard is there in full; reads no shard."""
    for number, shard in enumerate(description.shards):
        files = shard_files(storage.path(folder), number)
        for file, size in zip(files, shard.sizes, strict=True):
            storage.check_size(file, size, _AGAIN)


def check_vocabulary(folder: str, vocabulary: int) -> None:
    """Raise `UserError` unless a model with so many embedding rows can hold the dataset's ids."""
    needed = read_description(folder).vocabulary
    require(
        needed <= vocabulary,
        f"dataset {folder!r} has ids up to {needed - 1:,}, but the model's vocabulary is "
        f"{vocabulary:,}: make it at least {needed:,}",
    )


def verify(folder: str) -> None:
    """Read every shard and compare its checksum with the sidecar's. Raises `UserError`."""
    description = read_description(folder)
    check_sizes(folder, description)
    for number, shard in enumerate(description.shards):
        files = shard_files(storage.path(folder), number)
        for file, sha256 in zip(files, shard.checksums, strict=True):
            storage.check_sha256(file, sha256, _AGAIN)


def shard_files(folder: epath.Path, number: int) -> tuple[epath.Path, ...]:
    """Where the files of a shard are, or would be, in the order of `SUFFIXES`."""
    stem = folder / f"tokens-{number:05d}"
    return tuple(stem.with_suffix(suffix) for suffix in SUFFIXES)
