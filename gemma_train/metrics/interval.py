"""Figures with how sure they are: 95 % intervals of a mean, and of a share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a few values with its two-sided 95 % interval, by Student's t."""

    count: int
    mean: float
    deviation: float | None  # standard deviation of one value (n - 1); None of a single one
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of at least one value; not finite where one of them is not."""
        count, mean = len(values), float(np.mean(values))
        if count == 1:
            return cls(count=1, mean=mean, deviation=None, low=None, high=None)
        with np.errstate(invalid="ignore"):
            deviation = float(np.std(values, ddof=1))
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / np.sqrt(count)
        low, high = float(mean - reach), float(mean + reach)
        return cls(count=count, mean=mean, deviation=deviation, low=low, high=high)

    def plus(self, value: float) -> "Mean":
        """The mean of the values with this one added to each."""
        if self.low is None or self.high is None:
            return replace(self, mean=self.mean + value)
        return replace(self, mean=self.mean + value, low=self.low + value, high=self.high + value)


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of a few are so, with the 95 % interval of the share, by Wilson's score.

    Unlike Student's it is no point where none or all are so.
    """

    count: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[bool]) -> "Share":
        """Of at least one value."""
        found = stats.binomtest(int(np.sum(values)), len(values))
        low, high = found.proportion_ci(CONFIDENCE, method="wilson")
        share = float(found.statistic)
        return cls(count=len(values), share=share, low=float(low), high=float(high))
