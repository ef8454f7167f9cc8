"""Tokens on disk: flat uint32 shards, int64 document starts, and one sidecar that is written last.

    tokens-00000.bin      ids, little-endian uint32, documents end to end
    tokens-00000.offsets  where each document starts in its shard, little-endian int64
    tokens-00000.images   where the soft tokens of each image start, and the SHA-256 of its file
    dataset.json          the `Description`; a folder without it holds no dataset

Flat shards because any window of tokens is then one read: 11 us from a memory map, against 4.4 ms
out of compressed records. Documents never cross shards. A soft token has a place among the ids,
which holds 0; what stands there is in a store of embeddings. A write that is killed leaves no
sidecar, and the next one starts anew.
"""

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from etils import epath

from gemma_train import sidecar, storage
from gemma_train.errors import Damaged, require
from gemma_train.sidecar import Count, Positive
from gemma_train.tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 2
SIDECAR = "dataset.json"
IMAGE = np.dtype([("start", "<i8"), ("image", "V32")])  # packed: 40 bytes
_TYPES = (np.dtype("<u4"), np.dtype("<i8"), IMAGE)
_AGAIN = "remove its folder and run gemma-train prepare again"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Three files: their counts and checksums. The sizes follow: 4, 8 and 40 B of each thing."""

    tokens: Count
    documents: Count
    images: Count
    tokens_sha256: str
    offsets_sha256: str
    images_sha256: str

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of things in each file."""
        return self.tokens, self.documents, self.images

    @property
    def checksums(self) -> tuple[str, str, str]:
        """Of each file."""
        return self.tokens_sha256, self.offsets_sha256, self.images_sha256


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


class TokenWriter:
    """Writes the shards of a dataset document by document; `finish` makes it one."""

    def __init__(self, folder: epath.Path, shard_tokens: int, image: ImageSpan | None = None):
        self._folder, self._shard_tokens, self._image = folder, shard_tokens, image
        self._shards: list[Shard] = []
        self._open = None
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in (SIDECAR, "tokens-*.bin", "tokens-*.offsets", "tokens-*.images"):
            for leftover in folder.glob(pattern):
                leftover.unlink()

    def append(self, ids: Sequence[int], images: Sequence[tuple[int, bytes]] = ()) -> None:
        """Add one document, `<bos>` to `<eos>`.

        `images` are (index of its first soft token in `ids`, `image_key`), in rising order.
        """
        if self._open is None:
            self._open = _OpenShard(self._folder, len(self._shards))
        self._open.append(np.asarray(ids, _TYPES[0]), np.array([*images], IMAGE))
        if self._open.counts[0] >= self._shard_tokens:
            self._end_shard()

    def finish(self, tokenizer: Tokenizer, recipe: dict, sources: Sequence[SourceCounts]) -> None:
        """Close the last shard and write the sidecar."""
        self._end_shard()
        description = Description(
            tokenizer_sha256=tokenizer.sha256,
            vocabulary=tokenizer.vocabulary,
            image=self._image,
            recipe=recipe,
            sources=tuple(sources),
            shards=tuple(self._shards),
        )
        sidecar.write(self._folder / SIDECAR, description, FORMAT_VERSION)

    def _end_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None


class _OpenShard:
    def __init__(self, folder: epath.Path, number: int):
        self._streams = [file.open("wb") for file in _shard_files(folder, number)]
        self._digests = [hashlib.sha256() for _ in self._streams]
        self.counts = [0, 0, 0]  # tokens, documents, images

    def append(self, ids: np.ndarray, images: np.ndarray) -> None:
        tokens = self.counts[0]
        images["start"] += tokens
        for number, values in enumerate((ids, np.array([tokens], _TYPES[1]), images)):
            content = values.tobytes()
            self._streams[number].write(content)
            self._digests[number].update(content)
            self.counts[number] += values.size

    def close(self) -> Shard:
        for stream in self._streams:
            stream.close()
        tokens, documents, images = self.counts
        tokens_sha256, offsets_sha256, images_sha256 = (d.hexdigest() for d in self._digests)
        return Shard(
            tokens=tokens,
            documents=documents,
            images=images,
            tokens_sha256=tokens_sha256,
            offsets_sha256=offsets_sha256,
            images_sha256=images_sha256,
        )


class TokenDataset:
    """A dataset opened for reading: all its shards as one stream of `len(self)` tokens.

    Opening checks the sidecar and every file's size. Memory maps are made on first use and left
    out when pickled, so that every process has its own.
    """

    def __init__(self, folder: str):
        require("://" not in folder, f"dataset {folder!r} must be local: copy or mount the bucket")
        self.folder = folder
        self.description = read_description(folder)
        self._starts = [0, *accumulate(shard.tokens for shard in self.description.shards)]
        self._maps: dict[int, tuple[np.ndarray, ...]] = {}
        check_sizes(folder, self.description)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [start, stop) as uint32, where in them documents start, and images: `IMAGE`.

        Of images are told whose soft tokens begin there.
        """
        stop = min(stop, len(self))
        parts = []
        number = bisect.bisect_right(self._starts, start) - 1
        while number < len(self._starts) - 1 and self._starts[number] < stop:
            tokens, offsets, images = self._shard(number)
            base = self._starts[number]
            first, last = max(0, start - base), min(stop - base, tokens.size)
            offsets = offsets[slice(*np.searchsorted(offsets, (first, last)))]
            images = images[slice(*np.searchsorted(images["start"], (first, last)))].copy()
            for places in (offsets, images["start"]):
                self._check_places(places, first, last, number)
            images["start"] += base - start
            parts.append((tokens[first:last], offsets + (base - start), images))
            number += 1
        tokens, starts, images = (np.concatenate(part) for part in zip(*parts, strict=True))
        return tokens, starts, images

    def document_starts(self) -> np.ndarray:
        """int64: where every document starts in the stream, in rising order."""
        every = [np.zeros(0, np.int64)]
        for number, base in enumerate(self._starts[:-1]):
            starts, tokens = self._shard(number)[1], self._starts[number + 1] - base
            self._check_places(starts, 0, tokens, number)
            every.append(starts + base)
        return np.concatenate(every)

    def image_starts(self) -> np.ndarray:
        """int64: where the soft tokens of every image start in the stream, in rising order."""
        every = [np.zeros(0, np.int64)]
        for number, base in enumerate(self._starts[:-1]):
            starts, tokens = self._shard(number)[2]["start"], self._starts[number + 1] - base
            self._check_places(starts, 0, tokens, number)
            every.append(starts + base)
        return np.concatenate(every)

    def _check_places(self, places: np.ndarray, first: int, stop: int, number: int) -> None:
        """Raise `Damaged` unless places within a shard rise from `first` to below `stop`."""
        if not places.size:
            return
        is_rising = bool((places[1:] > places[:-1]).all())
        if not (is_rising and places[0] >= first and places[-1] < stop):
            file = _shard_files(storage.path(self.folder), number)[0]
            raise Damaged(
                f"what is told of documents or images of {str(file)!r} is no rising order of "
                f"places from {first:,} to below {stop:,}: {_AGAIN}"
            )

    def _shard(self, number: int) -> tuple[np.ndarray, ...]:
        if number not in self._maps:
            files = _shard_files(storage.path(self.folder), number)
            self._maps[number] = tuple(map(_mapped, files, _TYPES))
        return self._maps[number]


def _mapped(file: epath.Path, dtype: np.dtype) -> np.ndarray:
    if not file.stat().length:  # which cannot be mapped
        return np.zeros(0, dtype)
    # A plain view: slicing a memmap object costs more than the read.
    return np.memmap(file, dtype, mode="r").view(np.ndarray)


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
        files = _shard_files(storage.path(folder), number)
        for file, count, dtype in zip(files, shard.counts, _TYPES, strict=True):
            storage.check_size(file, count * dtype.itemsize, _AGAIN)


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
        files = _shard_files(storage.path(folder), number)
        for file, sha256 in zip(files, shard.checksums, strict=True):
            storage.check_sha256(file, sha256, _AGAIN)


def _shard_files(folder: epath.Path, number: int) -> tuple[epath.Path, epath.Path, epath.Path]:
    stem = folder / f"tokens-{number:05d}"
    tokens, offsets, images = (stem.with_suffix(s) for s in (".bin", ".offsets", ".images"))
    return tokens, offsets, images
