"""Which of a teacher's tokens the target of a position holds, and with what weight: a config each.

The Gemma 3 report keeps "256 logits per token, weighted by teacher probabilities", renormalised
(arXiv 2503.19786, section 2.2), and does not say how they are drawn. `TopK` is the plainest reading
and the default; the others are readings too, or unbiased where it is not. p is the teacher's
distribution at its temperature, S the set that is kept.
"""

from dataclasses import dataclass

from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class _Sized:
    candidates: int = 256  # tokens kept of each position

    def __post_init__(self) -> None:
        require(
            self.candidates >= 1,
            f"sampler.candidates is {self.candidates}: it must be at least 1 (256 is Gemma's)",
        )


@dataclass(frozen=True, kw_only=True)
class TopK(_Sized):
    """The likeliest tokens, p renormalised over them."""

    recall: float = 1.0  # share of them that must be found; below 1 a TPU looks for them faster

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.0 < self.recall <= 1.0,
            f"sampler.recall is {self.recall}: it must be above 0 and at most 1 (1 is exact)",
        )


@dataclass(frozen=True, kw_only=True)
class Gumbel(_Sized):
    """Drawn from p without replacement (largest log p + Gumbel noise), p renormalised over S."""


@dataclass(frozen=True, kw_only=True)
class Multinomial(_Sized):
    """Drawn from p with replacement, p renormalised over the distinct ones: fewer than asked."""


@dataclass(frozen=True, kw_only=True)
class Counts(_Sized):
    """Drawn from p with replacement, each draw weighing 1 / candidates: unbiased.

    Random sampling knowledge distillation (arXiv 2503.16870).
    """


@dataclass(frozen=True, kw_only=True)
class Priority(_Sized):
    """The largest p / u, u uniform, weighing max(p, tau), tau the next one: unbiased.

    Priority sampling (Duffield, Lund, Thorup 2007). Weights need not sum to 1.
    """


@dataclass(frozen=True, kw_only=True)
class Dense:
    """All of the vocabulary: for tests, and for small ones."""


Sampler = TopK | Gumbel | Multinomial | Counts | Priority | Dense


def size(sampler: Sampler, vocabulary: int) -> int:
    """How many candidates a position has."""
    return vocabulary if isinstance(sampler, Dense) else sampler.candidates
