"""Writes a dataset of token shards: what `shards` reads. The sidecar comes last."""

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from etils import epath

from gemma_train import sidecar
from gemma_train.data.blocks import BlockChecks
from gemma_train.data.shards import (
    FORMAT_VERSION,
    SIDECAR,
    SUFFIXES,
    TYPES,
    Description,
    ImageSpan,
    Shard,
    SourceCounts,
    shard_files,
)
from gemma_train.tokenizer.tokenizer import Tokenizer


class TokenWriter:
    """Writes the shards of a dataset document by document; `finish` makes it one."""

    def __init__(self, folder: epath.Path, shard_tokens: int, image: ImageSpan | None = None):
        self._folder, self._shard_tokens, self._image = folder, shard_tokens, image
        self._shards: list[Shard] = []
        self._open = None
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in (SIDECAR, *(f"tokens-*{suffix}" for suffix in SUFFIXES)):
            for leftover in folder.glob(pattern):
                leftover.unlink()

    def append(self, ids: Sequence[int], images: Sequence[tuple[int, bytes]] = ()) -> None:
        """Add one document, `<bos>` to `<eos>`.

        `images` are (index of its first soft token in `ids`, `image_key`), in rising order.
        """
        if self._open is None:
            self._open = _OpenShard(self._folder, len(self._shards))
        tokens, _, spans = TYPES
        self._open.append(np.asarray(ids, tokens), np.array([*images], spans))
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
        *files, self._checks = shard_files(folder, number)
        self._files = [_OpenFile(file) for file in files]
        self.counts = [0, 0, 0]  # tokens, documents, images

    def append(self, ids: np.ndarray, images: np.ndarray) -> None:
        tokens = self.counts[0]
        images["start"] += tokens
        for number, values in enumerate((ids, np.array([tokens], TYPES[1]), images)):
            self._files[number].write(values.tobytes())
            self.counts[number] += values.size

    def close(self) -> Shard:
        checks = b"".join(file.close() for file in self._files)
        self._checks.write_bytes(checks)
        tokens, documents, images = self.counts
        tokens_sha256, offsets_sha256, images_sha256 = (file.sha256 for file in self._files)
        return Shard(
            tokens=tokens,
            documents=documents,
            images=images,
            tokens_sha256=tokens_sha256,
            offsets_sha256=offsets_sha256,
            images_sha256=images_sha256,
            checks_sha256=hashlib.sha256(checks).hexdigest(),
        )


class _OpenFile:
    """A file under way and the checksums of what was written: of each block, and of the whole."""

    def __init__(self, file: epath.Path):
        self._stream: BinaryIO = file.open("wb")
        self._digest, self._checks = hashlib.sha256(), BlockChecks()

    def write(self, content: bytes) -> None:
        self._stream.write(content)
        self._digest.update(content)
        self._checks.update(content)

    def close(self) -> bytes:
        """The checks of its blocks."""
        self._stream.close()
        return self._checks.digest()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
