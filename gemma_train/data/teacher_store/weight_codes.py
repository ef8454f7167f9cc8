"""A target's weights as small integers, and back: three ways, by what the sampler makes of them.

`Normalised` weights sum to 1. A code is 8 bits: equal steps of the square root from 1 down to 0.04,
quarter nats below. The Kullback-Leibler divergence, p (dlog p)^2 / 2, is spread evenly over
candidates by the square root, so that these 160 B a token (of 256) cost 4e-4 nats, where steps of
1/8 nat take 188 B for 5e-4. The sum is 1 again afterwards.

`Multiples` are priority's: of half of tau, the weight of all that are drawn from the tail, and
rounded up or down at random, so that they stay unbiased. A weight's error is then at most as large
as what the drawing does to each of the tail, and adds some percent to it. One random number rounds
all of a position's running sums, so that their total is off by less than one unit.

`Equal` weights have no code.
"""

import zlib
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from gemma_train.samplers import Counts, Priority, Sampler

_ROOTS, _QUARTER_NATS = 193, 62
_VALUES = np.concatenate(  # of code 1 and up, falling
    [(1 - np.arange(_ROOTS) / 200) ** 2, 0.0016 * np.exp(-np.arange(1, _QUARTER_NATS + 1) / 4)]
)
_RISING_BORDERS = np.sqrt(_VALUES[1:] * _VALUES[:-1])[::-1].astype(np.float32)
_DECODED = np.concatenate([[0.0], _VALUES]).astype(np.float32)
_LEAST_UNIT, _LARGEST_UNIT = 2.0**-23, 2.0**33  # of weights up to 1 the codes take 3 bytes
_UNIT_SHIFT = 23 - 10  # of a float32's mantissa to a unit's
_UNIT_ZERO = np.uint32((127 - 25) << 10)  # 2^-25, which is no unit
_NONE = np.zeros(0, np.uint32)


class WeightCodes(Protocol):
    """Encodes weights float32 [n, q] of n positions. Its errors are `ValueError`s."""

    code_bytes: ClassVar[int]  # of each weight
    unit_bytes: ClassVar[int]  # of each position
    bits: ClassVar[float]  # that a code takes, packed, about

    def encode(self, weights_nq: np.ndarray, ids_nq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes uint32 [n, q], units uint32 [n] or [0]), the same for the same weights and ids."""
        ...

    def decode(self, codes_nq: np.ndarray, units_n: np.ndarray) -> np.ndarray:
        """The weights, nearly."""
        ...


@dataclass(frozen=True)
class Normalised:
    """Weights that sum to 1: the nearest code."""

    code_bytes: ClassVar[int] = 1
    unit_bytes: ClassVar[int] = 0
    bits: ClassVar[float] = 6.0

    def encode(self, weights_nq: np.ndarray, ids_nq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = _VALUES.size - np.searchsorted(_RISING_BORDERS, weights_nq)
        return np.where(weights_nq == 0, 0, codes).astype(np.uint32), _NONE

    def decode(self, codes_nq: np.ndarray, units_n: np.ndarray) -> np.ndarray:
        weights = _DECODED[codes_nq]
        sums = weights.sum(axis=1, keepdims=True)
        if not sums.all():
            raise ValueError("a position has no weight")
        return weights / sums


@dataclass(frozen=True)
class Equal:
    """Each weighs 1 / candidates."""

    candidates: int
    code_bytes: ClassVar[int] = 0
    unit_bytes: ClassVar[int] = 0
    bits: ClassVar[float] = 0.0

    def encode(self, weights_nq: np.ndarray, ids_nq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not np.allclose(weights_nq, 1 / self.candidates, rtol=1e-5, atol=0):
            raise ValueError(f"a weight is not 1 / {self.candidates}")
        return np.zeros(weights_nq.shape, np.uint32), _NONE

    def decode(self, codes_nq: np.ndarray, units_n: np.ndarray) -> np.ndarray:
        return np.full(codes_nq.shape, 1 / self.candidates, np.float32)


@dataclass(frozen=True)
class Multiples:
    """Weights max(p, tau), as multiples of a unit: half of tau, to a part in 1,024."""

    code_bytes: ClassVar[int] = 3
    unit_bytes: ClassVar[int] = 2
    bits: ClassVar[float] = 5.5

    def encode(self, weights_nq: np.ndarray, ids_nq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([zlib.crc32(x.tobytes()) for x in (weights_nq, ids_nq)])
        taus_n = np.where(weights_nq > 0, weights_nq, np.inf).min(axis=1, initial=np.inf)
        halves_n = np.clip(taus_n / 2, _LEAST_UNIT, _LARGEST_UNIT).astype(np.float32)
        up_n = random.integers(1 << _UNIT_SHIFT, size=halves_n.shape, dtype=np.uint32)
        units_n = ((halves_n.view(np.uint32) + up_n) >> _UNIT_SHIFT) - _UNIT_ZERO
        is_tau_nq = (weights_nq == taus_n[:, None]) & (taus_n[:, None] >= 2 * _LEAST_UNIT)
        multiples_nq = weights_nq.astype(np.float64) / _floats(units_n)[:, None]
        sums_nq = np.cumsum(np.where(is_tau_nq, 2.0, multiples_nq), axis=1)
        ends_nq = np.floor(sums_nq + random.random((len(weights_nq), 1)))
        return np.diff(ends_nq, axis=1, prepend=0.0).astype(np.uint32), units_n

    def decode(self, codes_nq: np.ndarray, units_n: np.ndarray) -> np.ndarray:
        units = _floats(units_n)
        if not ((units >= _LEAST_UNIT / 2) & (units <= 2 * _LARGEST_UNIT)).all():
            raise ValueError("a position's unit of weight is out of range")
        return codes_nq.astype(np.float32) * units[:, None]


def weight_codes(sampler: Sampler) -> WeightCodes:
    """Those of a sampler's targets."""
    match sampler:
        case Counts():
            return Equal(sampler.candidates)
        case Priority():
            return Multiples()
        case _:
            return Normalised()


def _floats(units_n: np.ndarray) -> np.ndarray:
    """float32, of 6 bits of exponent and 10 of mantissa."""
    return ((units_n.astype(np.uint32) + _UNIT_ZERO) << _UNIT_SHIFT).view(np.float32)
