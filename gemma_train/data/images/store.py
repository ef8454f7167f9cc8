"""Embeddings on disk: one record an image, known by the SHA-256 of its file's bytes.

    embeddings-00000.bin    records end to end, all of one size: [tokens, width] bfloat16
    embeddings-00000.keys   of each record 32 bytes of the image's SHA-256 and 4 of its own CRC-32
    store.json              the `Head`: the encoder that made them, written first
    encoder/                that encoder

Records of one size and no compression, which would save a fifth (design/data.md 1.9): a record is
one read at a known place. A shard is whole or absent: its keys are written last.
"""

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import ml_dtypes
import numpy as np
from etils import epath

from gemma_train import sidecar, storage
from gemma_train.errors import Damaged, UserError, require
from gemma_train.sidecar import Name, Positive

FORMAT_VERSION = 1
SIDECAR = "store.json"
DTYPE = np.dtype(ml_dtypes.bfloat16)
KEY = np.dtype([("image", "S32"), ("checksum", "<u4")])  # packed: 36 bytes
AGAIN = "remove it and run gemma-train embed again"
_SHARD = re.compile(r"embeddings-([0-9]{5,})\.keys")
_LOST = "restore it from a copy"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What made the embeddings of a store, and their shape."""

    encoder_sha256: Name  # of the encoder's parameters
    encoder: Name  # the folder of its weights, as it was named, or what they are
    side: Positive  # pixels that images were resized to
    tokens: Positive  # soft tokens of an image
    width: Positive  # of an embedding

    @property
    def record_bytes(self) -> int:
        """Of an image's embeddings."""
        return self.tokens * self.width * DTYPE.itemsize


def write_head(folder: str, head: Head) -> None:
    """Begin a store, or go on with one. Raises `UserError` for one of another encoder."""
    file = storage.path(folder) / SIDECAR
    if file.exists():
        return check_head(folder, read_head(folder), head)
    file.parent.mkdir(parents=True, exist_ok=True)
    sidecar.write(file, head, FORMAT_VERSION)


def read_head(folder: str) -> Head:
    """Raises `UserError` where a folder holds no store, or a garbled one."""
    file = storage.path(folder) / SIDECAR
    require(
        file.exists(),
        f"{folder!r} holds no image embeddings (no {SIDECAR}): run gemma-train embed",
    )
    return sidecar.read(file, Head, FORMAT_VERSION, _LOST)


def check_head(folder: str, there: Head, here: Head) -> None:
    """Raise `UserError`, naming both values, unless one encoder made and would make them.

    An encoder is its parameters, whatever folder they lie in.
    """
    for name in ("side", "tokens", "width", "encoder_sha256"):
        one, other = getattr(there, name), getattr(here, name)
        require(
            one == other,
            f"image embeddings {folder!r} were made with {name} {one!r} (encoder "
            f"{there.encoder!r}), not {other!r} ({here.encoder!r}): name another folder",
        )


def image_key(content: bytes) -> bytes:
    """The 32 bytes by which an image is known: of its file, whatever its name."""
    return sha256(content).digest()


def write_shard(folder: str, number: int, head: Head, images: Sequence[bytes], x_ipe) -> None:
    """Write a shard of images, by their keys, and their embeddings [images, tokens, width]."""
    records, keys = _shard_files(folder, number)
    embeddings = np.ascontiguousarray(x_ipe, DTYPE)
    assert embeddings.shape == (len(images), head.tokens, head.width)
    table = np.empty(len(images), KEY)
    table["image"] = images
    table["checksum"] = [zlib.crc32(_bytes(one)) for one in embeddings]
    storage.write_whole(records, embeddings.tobytes())
    storage.write_whole(keys, table.tobytes())


def finished_shards(folder: str) -> list[int]:
    """The numbers of the whole shards. One that was removed is a gap, which the next one fills."""
    names = (file.name for file in storage.path(folder).glob("embeddings-*.keys"))
    return sorted(int(match[1]) for match in map(_SHARD.fullmatch, names) if match)


class EmbeddingStore:
    """A store opened for reading, in any thread or process: an image's embeddings by its key.

    Opening checks every shard's size; 44 bytes an image stay in memory. A record's checksum is
    compared whenever it is read.
    """

    def __init__(self, folder: str):
        require("://" not in folder, f"image embeddings {folder!r} must be local: copy or mount it")
        self.folder, self.head = folder, read_head(folder)
        self._files = storage.OpenFiles()
        numbers = finished_shards(folder)
        tables = [self._keys(number) for number in numbers]
        sizes = [len(table) for table in tables]
        table = np.concatenate([*tables, np.empty(0, KEY)])
        order = np.argsort(table["image"], kind="stable")
        self._table = table[order]
        self._shards = np.repeat(np.array(numbers, np.int32), sizes)[order]
        places = [np.arange(size, dtype=np.int32) for size in sizes]
        self._places = np.concatenate([*places, np.empty(0, np.int32)])[order]

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[bytes]:
        """The keys of all images."""
        return map(_whole, self._table["image"])

    def __contains__(self, image: bytes) -> bool:
        return self._find(image) is not None

    def read(self, image: bytes) -> np.ndarray:
        """bfloat16 [tokens, width]. Raises `Damaged` where they are, `UserError` if not here."""
        found = self._find(image)
        if found is None:
            raise UserError(
                f"image {image.hex()[:16]}... has no embeddings in {self.folder!r}: run "
                "gemma-train embed with the recipe that prepared the dataset"
            )
        file = os.fspath(_shard_files(self.folder, int(self._shards[found]))[0])
        size = self.head.record_bytes
        content = self._files.read(file, int(self._places[found]) * size, size, AGAIN)
        if len(content) != size or zlib.crc32(content) != self._table["checksum"][found]:
            raise Damaged(
                f"shard {file!r} is damaged at image {image.hex()[:16]}... (record "
                f"{self._places[found]}): {AGAIN}",
                file,
            )
        return np.frombuffer(content, DTYPE).reshape(self.head.tokens, self.head.width)

    def _find(self, image: bytes) -> int | None:
        place = int(np.searchsorted(self._table["image"], np.bytes_(image)))
        same = place < len(self._table) and _whole(self._table["image"][place]) == image
        return place if same else None

    def _keys(self, number: int) -> np.ndarray:
        records, keys = _shard_files(self.folder, number)
        content = storage.read_bytes(keys, AGAIN)
        if not content or len(content) % KEY.itemsize:
            raise Damaged(
                f"{str(keys)!r} has {len(content):,} bytes, no multiple of {KEY.itemsize}: {AGAIN}",
                str(keys),
            )
        table = np.frombuffer(content, KEY)
        expected = len(table) * self.head.record_bytes
        size = records.stat().length if records.exists() else 0
        if size != expected:
            raise Damaged(
                f"shard {str(records)!r} has {size:,} bytes, its {len(table):,} images take "
                f"{expected:,}: remove {keys.name!r} too and run gemma-train embed again",
                str(records),
            )
        return table


def verify(folder: str) -> None:
    """Read every record and compare its checksum. Raises `UserError`."""
    store = EmbeddingStore(folder)
    for image in store:
        store.read(image)


def _whole(key: np.bytes_) -> bytes:
    """32 bytes again: NumPy drops zeros at the end."""
    return bytes(key).ljust(32, b"\0")


def _bytes(x: np.ndarray) -> memoryview:
    return x.view(np.uint8).data


def _shard_files(folder: str, number: int) -> tuple[epath.Path, epath.Path]:
    stem = storage.path(folder) / f"embeddings-{number:05d}"
    return stem.with_suffix(".bin"), stem.with_suffix(".keys")
