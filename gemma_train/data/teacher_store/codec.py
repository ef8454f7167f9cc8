"""One row of a teacher's targets as bytes, and back: about 2 B a candidate.

A position's candidates are sorted; the steps from one to the next are cut into byte planes, and
zstandard's entropy coder, its checksum on, brings them within 1 % of the fewest bits that a set of
ids can have (Gemma's vocabulary, 256 of 262,144: 372 B; sorted by weight they would need 576).

A weight is 8 bits: equal steps of its square root, and quarter nats where these are finer. The
Kullback-Leibler divergence, p (dlog p)^2 / 2, is spread evenly over candidates by the square root,
so that these 160 B a token cost 4e-4 nats, where steps of 1/8 nat take 188 B for 5e-4. The sum is 1
again afterwards.

`Priority` is unbiased and stays so: a weight goes to the code above or below it at random, in the
mean to itself, and tau to a bfloat16. Its steps are half of 1 / candidates: they add some percent
to the variance of the drawing, and what they save pays for more candidates.
"""

import zlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import zstandard

from gemma_train.data.example import Row
from gemma_train.errors import require
from gemma_train.samplers import Counts, Dense, Priority, Sampler

_FEWEST_STEPS, _MOST_STEPS = 16, 200  # of the square root, from 1 down to 0
_QUARTER_NATS = 62  # codes below the square root's
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
        codes, taus = self._quantised(weights, _random(ids, weights))
        # One sort of both: it is vectorised, which sorting by a key of its own is not.
        both = np.sort((ids.astype(np.int64) << 8) | codes, axis=1)
        steps = np.diff(both >> 8, axis=1, prepend=0)
        planes = [
            np.packbits(taught),
            *_cut(row.tokens, self._id_bytes),
            *_cut(taus, 2),
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
        taus = _joined([_read(next(frames), some) for _ in range(2)])
        ids = _joined([_read(next(frames), size) for _ in range(self._id_bytes)]).reshape(shape)
        ids = np.cumsum(ids, axis=1, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError("it holds ids beyond the vocabulary")
        codes = _read(next(frames), size * (self.weights != "equal"))
        weights = self._weights(codes.reshape(-1, self.candidates), taus, shape)
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
        code = {"normalised": 6.0, "equal": 0.0, "priority": 2.6}[self.weights]
        bits = self.candidates * (np.log2(np.e * share) + code)
        return int(bits / 8) + 2 * (self.weights == "priority") + self._id_bytes + 1

    @property
    def _id_bytes(self) -> int:
        return (max(1, self.vocabulary - 1).bit_length() + 7) // 8

    @property
    def _values(self) -> np.ndarray:
        steps = 2 * self.candidates if self.weights == "priority" else _MOST_STEPS
        return _values(min(max(steps, _FEWEST_STEPS), _MOST_STEPS))

    def _quantised(
        self, weights: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(codes, the bits of each position's tau): see `_weights`."""
        match self.weights:
            case "normalised":
                return np.where(weights == 0, 0, _nearest(weights, self._values)), _NONE
            case "equal":
                if not np.allclose(weights, 1 / self.candidates, rtol=1e-5, atol=0):
                    raise ValueError(f"a weight is not 1 / {self.candidates}")
                return np.zeros(weights.shape, np.uint8), _NONE
            case "priority":  # those at tau are the smallest and, unless there are none, equal
                taus = weights.min(axis=1, initial=np.inf)
                codes = _at_random(weights, self._values, random)
                codes[weights == taus[:, None]] = 0
                up = random.integers(1 << 16, size=taus.shape, dtype=np.uint32)
                return codes, (taus.view(np.uint32) + up) >> 16

    def _weights(self, codes: np.ndarray, taus: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """float32; code 0 is 0, or priority's tau."""
        if self.weights == "equal":
            return np.full(shape, 1 / self.candidates, np.float32)
        values = np.concatenate([[np.float32(0)], self._values])
        if codes.max(initial=0) >= values.size:
            raise ValueError("it holds codes beyond the last")
        weights = values[codes]
        if self.weights == "priority":
            floats = (taus << 16).view(np.float32)
            if not (np.isfinite(floats) & (floats >= 0)).all():
                raise ValueError("a weight is negative or no number")
            return np.where(codes == 0, floats[:, None], weights)
        found = weights.sum(axis=1, keepdims=True)
        return weights / np.where(found > 0, found, 1)

    def _frames(self, record: bytes) -> list[memoryview]:
        count = 4 + 2 * self._id_bytes
        ends = 4 * count + np.cumsum(np.frombuffer(record[: 4 * count], "<u4").astype(np.int64))
        if ends.size != count or ends[-1] != len(record):
            raise ValueError("its length is wrong")
        view, starts = memoryview(record), [4 * count, *ends.tolist()]
        return [view[start:end] for start, end in pairwise(starts)]


_NONE = np.zeros(0, np.uint32)


@cache
def _values(steps: int) -> np.ndarray:
    """float32, of code 1 and up, falling: a step of the square root is a quarter nat at 8 steps."""
    roots = (np.arange(steps, 7, -1) / steps) ** 2
    falling = roots[-1] * np.exp(-np.arange(1, _QUARTER_NATS + 1) / 4)
    return np.concatenate([roots, falling]).astype(np.float32)


def _nearest(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The codes nearest weights, by ratio."""
    borders = np.sqrt(values[1:] * values[:-1])[::-1]
    return (values.size - np.searchsorted(borders, weights)).astype(np.uint8)


def _at_random(weights: np.ndarray, values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The code below a weight or the one above it, whose mean is the weight."""
    rising = values[::-1]
    above = np.searchsorted(rising, weights).clip(1, values.size - 1)
    low, high = rising[above - 1], rising[above]
    goes_up = random.random(weights.shape, np.float32) < (weights - low) / (high - low)
    return (values.size - (above - 1 + goes_up)).astype(np.uint8)


def _random(ids: np.ndarray, weights: np.ndarray) -> np.random.Generator:
    """Of the targets themselves: what is encoded twice is the same twice."""
    return np.random.default_rng([zlib.crc32(np.ascontiguousarray(of)) for of in (ids, weights)])


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
