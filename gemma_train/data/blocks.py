"""Files in blocks of 64 KiB, each with a CRC-32: a block is compared when it is first read.

Once per block and process, so that a bit that flipped on the disk is found before it is learned
from, and a second pass costs nothing. Reads are `pread`s, no memory maps: where a disk fails or a
file was cut, a map ends the process with a signal, and a read with an error that can be told.
"""

import contextlib
import zlib
from functools import cached_property

import numpy as np

from gemma_train import storage
from gemma_train.errors import Damaged

BLOCK = 1 << 16  # bytes
CHECK = np.dtype("<u4")  # of a block: 1 / 16,384 of what is checked
_PIECE = 512  # records between two that `RisingRecords` keeps


def block_count(size: int) -> int:
    """How many blocks a file of so many bytes has; the last may be short."""
    return -(-size // BLOCK)


class BlockChecks:
    """The CRC-32 of each block of what is written piece by piece."""

    def __init__(self) -> None:
        self._ended: list[int] = []
        self._current = self._filled = 0

    def update(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            part = rest[: BLOCK - self._filled]
            rest = rest[len(part) :]
            self._current = zlib.crc32(part, self._current)
            self._filled += len(part)
            if self._filled == BLOCK:
                self._ended.append(self._current)
                self._current = self._filled = 0

    def digest(self) -> bytes:
        """The checks of all blocks so far, `CHECK` each."""
        last = [self._current] if self._filled else []
        return np.array(self._ended + last, CHECK).tobytes()


class CheckedFile:
    """A local file of `size` bytes read in any part, by any number of threads.

    `checks` are its blocks' checksums, as `BlockChecks` gives them; `cure` says what would do.
    """

    def __init__(
        self, files: storage.OpenFiles, name: str, *, size: int, checks: bytes, cure: str
    ) -> None:
        self.name, self.size = name, size
        self._files, self._cure = files, cure
        self._checks = np.frombuffer(checks, CHECK)
        self._compared = bytearray(block_count(size))  # 1 where a block was

    def read(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the file.

        Raises `Damaged`, naming file and block, where they are not what was written or the file
        has become shorter, and `UserError` where it cannot be read.
        """
        first, last = start // BLOCK, block_count(stop)
        if self._compared.find(0, first, last) < 0:
            content = self._files.read(self.name, start, stop - start, self._cure)
            if len(content) < stop - start:
                raise self._short(start + len(content))
            return memoryview(content)
        begin, end = first * BLOCK, min(last * BLOCK, self.size)
        content = memoryview(self._files.read(self.name, begin, end - begin, self._cure))
        for block in range(first, last):
            part = content[block * BLOCK - begin : (block + 1) * BLOCK - begin]
            if not self._compared[block]:
                self._compare(block, part)
        return content[start - begin : stop - begin]

    def _compare(self, block: int, content: memoryview) -> None:
        begin, end = block * BLOCK, min((block + 1) * BLOCK, self.size)
        if len(content) < end - begin:
            raise self._short(begin + len(content))
        if zlib.crc32(content) != self._checks[block]:
            raise Damaged(
                f"{self.name!r} is damaged in bytes {begin:,} to {end:,} (block {block:,} of "
                f"{block_count(self.size):,}): {self._cure}",
                self.name,
            )
        self._compared[block] = 1

    def _short(self, found: int) -> Damaged:
        return Damaged(
            f"{self.name!r} is cut: it has no byte {found:,} (block {found // BLOCK:,}), and "
            f"should have {self.size:,}: {self._cure}",
            self.name,
        )


class RisingRecords:
    """Records of a checked file whose keys rise: those between two keys are one read.

    Every 512th key stays in memory; they are read when first asked for. A damaged block costs the
    reads that would need it, and no others.
    """

    def __init__(self, file: CheckedFile, dtype: np.dtype, key: str | None = None):
        self._file, self._dtype, self._key = file, dtype, key
        self._count = file.size // dtype.itemsize

    def all(self) -> np.ndarray:
        """Every record."""
        return self._records(0, self._count)

    def between(self, first: int, last: int) -> np.ndarray:
        """The records whose keys are in [first, last)."""
        if not self._count:
            return np.empty(0, self._dtype)
        begin = max(int(self._sample.searchsorted(first, "right")) - 1, 0) * _PIECE
        end = int(self._sample.searchsorted(last)) * _PIECE
        found = self._records(begin, min(end, self._count))
        keys = self._keys(found)
        return found[keys.searchsorted(first) : keys.searchsorted(last)]

    @cached_property
    def _sample(self) -> np.ndarray:
        """The first key of each piece; of one that is damaged, the last that is known before it,
        so that all that may be in it is looked for there."""
        starts = range(0, self._count, _PIECE)
        sample, known = np.empty(len(starts), np.int64), 0
        for piece, start in enumerate(starts):
            with contextlib.suppress(Damaged):
                known = int(self._keys(self._records(start, start + 1))[0])
            sample[piece] = known
        return sample

    def _records(self, first: int, last: int) -> np.ndarray:
        size = self._dtype.itemsize
        if first >= last:
            return np.empty(0, self._dtype)
        return np.frombuffer(self._file.read(first * size, last * size), self._dtype)

    def _keys(self, records: np.ndarray) -> np.ndarray:
        return records if self._key is None else records[self._key]
