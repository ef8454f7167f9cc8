"""One row of a teacher's targets as bytes, and back: about 2 B a candidate.

A position's candidates are sorted; the steps from one to the next are cut into byte planes, and
zstandard's entropy coder, its checksum on, brings them within 1 % of the fewest bits that a set of
ids can have (Gemma's vocabulary, 256 of 262,144: 372 B; sorted by weight they would need 576).
What a weight becomes is told in `weight_codes.py`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import zstandard

from gemma_train.data.example import Row
from gemma_train.data.teacher_store.weight_codes import WeightCodes, weight_codes
from gemma_train.errors import require
from gemma_train.samplers import Dense, Sampler

_LEVEL = 1  # of zstandard: higher ones look for repeats where there are none, and code no better

_FRAME_BYTES = 40  # of a frame beside what it packs: its length, head, checksum and table


class RowTargets(NamedTuple):
    """What a record holds of a row of t tokens, n of which carry loss."""

    tokens: np.ndarray  # int32 [t]: the row's own ids
    taught: np.ndarray  # bool [t]: where there are targets
    candidates: np.ndarray  # int32 [n, q], rising
    probabilities: np.ndarray  # float32 [n, q]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Encodes and decodes the rows of one store. Its errors are `ValueError`s."""

    weights: WeightCodes
    candidates: int
    vocabulary: int
    length: int

    def encode(self, row: Row) -> bytes:
        """The record of a row; positions of weight 0 are left out."""
        assert row.candidates is not None and row.probabilities is not None
        taught = row.weights > 0
        ids, weights = row.candidates[taught], row.probabilities[taught]
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("a weight is negative or no number")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError(f"a candidate is none of {self.vocabulary:,} ids")
        codes, units = self.weights.encode(weights, ids)
        # One sort of both: it is vectorised, which sorting by a key of its own is not.
        both = np.sort((ids.astype(np.int64) << 24) | codes, axis=1)
        steps = np.diff(both >> 24, axis=1, prepend=0)
        planes = [
            np.packbits(taught),
            *_cut(row.tokens, self._id_bytes),
            *_cut(units, self.weights.unit_bytes),
            *_cut(steps, self._id_bytes),
            *_cut(both, self.weights.code_bytes),
        ]
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        frames = [compressor.compress(np.ascontiguousarray(plane).tobytes()) for plane in planes]
        return np.array([len(frame) for frame in frames], "<u4").tobytes() + b"".join(frames)

    def decode(self, record: bytes) -> RowTargets:
        """What `encode` was given, weights within the codes' precision. Damage is found."""
        frames = iter(self._frames(record))

        def read(planes: int, size: int) -> np.ndarray:
            return _joined([_read(next(frames), size) for _ in range(planes)], size)

        taught = np.unpackbits(_read(next(frames), -(-self.length // 8)), count=self.length) > 0
        tokens = read(self._id_bytes, self.length)
        count = int(taught.sum())
        size, shape = count * self.candidates, (count, self.candidates)
        units = read(self.weights.unit_bytes, count)
        ids = np.cumsum(read(self._id_bytes, size).reshape(shape), axis=1, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError("it holds ids beyond the vocabulary")
        codes = read(self.weights.code_bytes, size)
        weights = self.weights.decode(codes.reshape(shape), units)
        return RowTargets(
            tokens=tokens,
            taught=taught,
            candidates=ids.astype(np.int32),
            probabilities=weights,
        )

    @property
    def estimated_bytes(self) -> int:
        """About what a token takes with ids spread evenly over the vocabulary: rather too much."""
        share = max(1.0, self.vocabulary / self.candidates)
        bits = self.candidates * (np.log2(np.e * share) + self.weights.bits)
        rest = self.weights.unit_bytes + self._id_bytes + 1
        return int(bits / 8 + rest + self._frame_count * _FRAME_BYTES / self.length)

    @property
    def _id_bytes(self) -> int:
        return (max(1, self.vocabulary - 1).bit_length() + 7) // 8

    @property
    def _frame_count(self) -> int:
        return 1 + 2 * self._id_bytes + self.weights.unit_bytes + self.weights.code_bytes

    def _frames(self, record: bytes) -> list[memoryview]:
        count = self._frame_count
        ends = 4 * count + np.cumsum(np.frombuffer(record[: 4 * count], "<u4").astype(np.int64))
        if ends.size != count or ends[-1] != len(record):
            raise ValueError("its length is wrong")
        view, starts = memoryview(record), [4 * count, *ends.tolist()]
        return [view[start:end] for start, end in pairwise(starts)]


def codec(sampler: Sampler, *, vocabulary: int, length: int) -> Codec:
    """The codec of a sampler's targets for rows of `length` tokens; `UserError` for Dense."""
    require(
        not isinstance(sampler, Dense),
        f"loss.sampler is {sampler!r}: all of the vocabulary is too much to store; choose another, "
        "or an online teacher",
    )
    return Codec(
        weights=weight_codes(sampler),
        candidates=sampler.candidates,
        vocabulary=vocabulary,
        length=length,
    )


def _cut(values: np.ndarray, count: int) -> list[np.ndarray]:
    """The lowest `count` bytes of integers, lowest first, as an array of bytes each."""
    return [(values >> (8 * byte)).astype(np.uint8) for byte in range(count)]


def _joined(planes: list[np.ndarray], size: int) -> np.ndarray:
    """The inverse of `_cut`, as int32; zeros of no plane."""
    values = np.zeros(size, np.int32)
    for byte, plane in enumerate(planes):
        if plane.any():
            values |= plane.astype(np.int32) << (8 * byte)
    return values


def _read(frame: memoryview, size: int) -> np.ndarray:
    """The bytes of a frame, which must be so many: a damaged size is not believed."""
    try:
        if zstandard.frame_content_size(frame) != size:
            raise ValueError("a part of it has another size")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
