"""The mean loss of held-out tokens, in nats."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gemma_train.data.example import Batch
from gemma_train.errors import require
from gemma_train.losses.next_token import NextToken, next_token_loss
from gemma_train.model import Gemma


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often a run is evaluated while it trains, and on how much."""

    every_steps: int = 500  # steps between evaluations; the last step is always evaluated
    rows: int = 64  # held-out rows of an evaluation, spread evenly over the held-out text

    def __post_init__(self) -> None:
        require(
            self.every_steps >= 1,
            f"evaluation.every_steps is {self.every_steps}: it must be at least 1",
        )
        require(self.rows >= 1, f"evaluation.rows is {self.rows}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Nats per token, and how many tokens it is the mean of."""

    loss: float
    tokens: int

    def told(self, unigram_entropy: float) -> str:
        """In words, beside the loss of a model that only knows how often each token occurs."""
        return (
            f"held-out loss {self.loss:.4f} nats per token over {self.tokens:,} tokens; "
            f"their unigram entropy {unigram_entropy:.4f}; "
            f"{unigram_entropy - self.loss:.4f} nats below it"
        )


def make_evaluation(
    loss: NextToken,
) -> Callable[[Gemma, Iterable[Batch]], HeldOutLoss]:
    """A function that gives a model's mean cross-entropy over batches placed on the mesh."""

    @jax.jit
    def sums(model: Gemma, batch: Batch) -> tuple[jax.Array, jax.Array]:
        _, cross_entropy = next_token_loss(model, batch, jnp.float32(1.0), loss)
        return cross_entropy, jnp.sum(batch.weights_bt)

    def evaluate(model: Gemma, batches: Iterable[Batch]) -> HeldOutLoss:
        found = [sums(model, batch) for batch in batches]
        nats, tokens = (sum(float(one[i]) for one in found) for i in (0, 1))
        return HeldOutLoss(loss=nats / max(tokens, 1.0), tokens=int(tokens))

    return evaluate
