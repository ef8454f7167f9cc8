"""One row of a teacher's targets as bytes, and back: about 2 B a candidate.

A position's candidates are sorted; the steps from one to the next are cut into byte planes, and
zstandard's entropy coder, its checksum on, brings them within 1 % of the fewest bits that a set of
ids can have (Gemma's vocabulary, 256 of 262,144: 372 B; sorted by weight they would need 576).

A weight is 8 bits: equal steps of its square root from 1 down to 0.04, quarter nats below. The
Kullback-Leibler divergence, p (dlog p)^2 / 2, is spread evenly over candidates by the square root,
so that these 160 B a token cost 4e-4 nats, where steps of 1/8 nat take 188 B for 5e-4. Codes keep a
position's sum: 1, or for `Priority`, which is unbiased, one that is stored.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import zstandard

from gemma_train.data.example import Row
from gemma_train.errors import require
from gemma_train.samplers import Counts, Dense, Priority, Sampler

_ROOTS, _QUARTER_NATS = 193, 62
_VALUES = np.concatenate(  # of code 1 and up, falling; code 0 is apart
    [(1 - np.arange(_ROOTS) / 200) ** 2, 0.0016 * np.exp(-np.arange(1, _QUARTER_NATS + 1) / 4)]
)
_RISING_BORDERS = np.sqrt(_VALUES[1:] * _VALUES[:-1])[::-1].astype(np.float32)
_FLOOR, _SUM = np.dtype("<f4"), np.dtype("<f2")
_LEVEL = 1  # of zstandard: higher ones look for repeats where there are none, and code no better


class RowTargets(NamedTuple):
    """What a record holds of a row of t tokens, n of which carry loss."""

    tokens: np.ndarray  # int32 [t]: the row's own ids
    taught: np.ndarray  # bool [t]: where there are targets
    candidates: np.ndarray  # int32 [n, q], rising
    probabilities: np.ndarray  # float32 [n, q]


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Encodes and decodes the rows of one store. Its errors are `ValueError`s."""

    weights: Literal["normalised", "equal", "priority"]
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
        codes, floors, sums = self._quantised(weights)
        # One sort of both: it is vectorised, which sorting by a key of its own is not.
        both = np.sort((ids.astype(np.int64) << 8) | codes, axis=1)
        steps = np.diff(both >> 8, axis=1, prepend=0)
        planes = [
            np.packbits(taught),
            *_cut(row.tokens, self._id_bytes),
            floors,
            sums,
            *_cut(steps, self._id_bytes),
            both.astype(np.uint8) if self.weights != "equal" else codes[:0],
        ]
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        frames = [compressor.compress(np.ascontiguousarray(plane).tobytes()) for plane in planes]
        return np.array([len(frame) for frame in frames], "<u4").tobytes() + b"".join(frames)

    def decode(self, record: bytes) -> RowTargets:
        """What `encode` was given, weights within the codes' precision. Damage is found."""
        frames = iter(self._frames(record))
        taught = np.unpackbits(_read(next(frames), -(-self.length // 8)), count=self.length) > 0
        tokens = _joined([_read(next(frames), self.length) for _ in range(self._id_bytes)])
        count = int(taught.sum())
        size, shape = count * self.candidates, (count, self.candidates)
        some = count if self.weights == "priority" else 0
        floors = _read(next(frames), 4 * some).view(_FLOOR)
        sums = _read(next(frames), 2 * some).view(_SUM)
        ids = _joined([_read(next(frames), size) for _ in range(self._id_bytes)]).reshape(shape)
        ids = np.cumsum(ids, axis=1, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError("it holds ids beyond the vocabulary")
        codes = _read(next(frames), size * (self.weights != "equal"))
        weights = self._weights(codes.reshape(-1, self.candidates), floors, sums, shape)
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
        code = {"normalised": 6.0, "equal": 0.0, "priority": 3.4}[self.weights]
        bits = self.candidates * (np.log2(np.e * share) + code)
        return int(bits / 8) + 6 * (self.weights == "priority") + self._id_bytes + 1

    @property
    def _id_bytes(self) -> int:
        return (max(1, self.vocabulary - 1).bit_length() + 7) // 8

    def _quantised(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(codes, each position's weight of code 0, the sum of the others): see `_weights`."""
        codes = _VALUES.size - np.searchsorted(_RISING_BORDERS, weights).astype(np.uint8)
        floors, sums = np.zeros(0, _FLOOR), np.zeros(0, _SUM)
        match self.weights:
            case "normalised":
                codes[weights == 0] = 0
            case "equal":
                if not np.allclose(weights, 1 / self.candidates, rtol=1e-5, atol=0):
                    raise ValueError(f"a weight is not 1 / {self.candidates}")
                codes[:] = 0
            case "priority":  # those at tau are the smallest and, unless there are none, equal
                floors = weights.min(axis=1, initial=np.inf).astype(_FLOOR)
                is_floor = weights == floors[:, None]
                codes[is_floor] = 0
                sums = np.where(is_floor, 0, weights).sum(axis=1).astype(_SUM)
        return codes, floors, sums

    def _weights(
        self, codes: np.ndarray, floors: np.ndarray, sums: np.ndarray, shape: tuple[int, int]
    ) -> np.ndarray:
        """float32; those of codes above 0 are scaled to their sum, which is 1 but for priority."""
        if self.weights == "equal":
            return np.full(shape, 1 / self.candidates, np.float32)
        weights = _DECODED[codes]
        found = weights.sum(axis=1, keepdims=True)
        due = sums[:, None].astype(np.float32) if self.weights == "priority" else np.float32(1)
        weights *= due / np.where(found > 0, found, 1)
        if self.weights == "priority":
            np.copyto(weights, floors[:, None], where=codes == 0)
        return weights

    def _frames(self, record: bytes) -> list[memoryview]:
        count = 4 + 2 * self._id_bytes
        ends = 4 * count + np.cumsum(np.frombuffer(record[: 4 * count], "<u4").astype(np.int64))
        if ends.size != count or ends[-1] != len(record):
            raise ValueError("its length is wrong")
        view, starts = memoryview(record), [4 * count, *ends.tolist()]
        return [view[start:end] for start, end in pairwise(starts)]


_DECODED = np.concatenate([[0.0], _VALUES]).astype(np.float32)


def codec(sampler: Sampler, *, vocabulary: int, length: int) -> Codec:
    """The codec of a sampler's targets for rows of `length` tokens; `UserError` for Dense."""
    require(
        not isinstance(sampler, Dense),
        f"loss.sampler is {sampler!r}: all of the vocabulary is too much to store; choose another, "
        "or an online teacher",
    )
    weights = "normalised"
    if isinstance(sampler, Counts):
        weights = "equal"
    if isinstance(sampler, Priority):
        weights = "priority"
    return Codec(
        weights=weights, candidates=sampler.candidates, vocabulary=vocabulary, length=length
    )


def _cut(values: np.ndarray, count: int) -> list[np.ndarray]:
    """The lowest `count` bytes of integers, lowest first, as an array of bytes each."""
    return [(values >> (8 * byte)).astype(np.uint8) for byte in range(count)]


def _joined(planes: list[np.ndarray]) -> np.ndarray:
    """The inverse of `_cut`, as int32."""
    values = planes[0].astype(np.int32)
    for byte, plane in enumerate(planes[1:], 1):
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
