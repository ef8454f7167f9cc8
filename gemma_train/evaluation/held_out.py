"""The mean loss of held-out tokens, in nats."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma_train.data.config import DataConfig
from gemma_train.data.example import Batch
from gemma_train.data.pipeline import held_out_batches
from gemma_train.errors import require
from gemma_train.losses.next_token import NextToken, next_token_loss
from gemma_train.model import Gemma
from gemma_train.placement import needed_rows, place


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often a run is evaluated while it trains, and on how much."""

    every_steps: int = 500  # steps between evaluations; the last step is always evaluated
    rows: int = 64  # held-out rows of an evaluation, spread evenly over the held-out text
    captions: int = 0  # held-out images whose captions are compared when all steps are done

    def __post_init__(self) -> None:
        require(
            self.every_steps >= 1,
            f"evaluation.every_steps is {self.every_steps}: it must be at least 1",
        )
        require(self.rows >= 1, f"evaluation.rows is {self.rows}: it must be at least 1")
        require(
            self.captions >= 0,
            f"evaluation.captions is {self.captions}: it must be 0 (none) or more",
        )


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Nats per token, and how many tokens it is the mean of."""

    loss: float
    tokens: int

    def told(self, unigram_entropy: float) -> str:
        """In words, beside the loss of a model that only knows how often each token occurs."""
        gain = unigram_entropy - self.loss
        return (
            f"held-out loss {self.loss:.4f} nats per token over {self.tokens:,} tokens; "
            f"their unigram entropy {unigram_entropy:.4f}; "
            f"{abs(gain):.4f} nats {'below' if gain >= 0 else 'above'} it"
        )


def make_held_out_loss(
    data: DataConfig, mesh: Mesh, *, chunk: int, batch_rows: int, maximum_rows: int | None
) -> Callable[..., HeldOutLoss]:
    """A function that gives a model's loss on held-out rows (all if None), compiled once.

    What it is given beside the model is called ahead of every batch, and may raise. `batch_rows`
    rows are computed at a time, over all devices of the mesh in force, the logits of `chunk` tokens
    a device.
    """
    loss = NextToken(chunk=chunk)
    indices = needed_rows(mesh, batch_rows)

    @jax.jit
    def sums(model: Gemma, batch: Batch) -> tuple[jax.Array, jax.Array]:
        _, cross_entropy = next_token_loss(model, batch, jnp.float32(1.0), loss)
        return cross_entropy, jnp.sum(batch.weights_bt)

    def held_out_loss(model: Gemma, check: Callable[[], None] = lambda: None) -> HeldOutLoss:
        def summed(batch: Batch) -> tuple[jax.Array, jax.Array]:
            check()
            return sums(model, place(batch, mesh, batch_rows))

        rows = held_out_batches(
            data, batch_rows=batch_rows, maximum_rows=maximum_rows, batch_indices=indices
        )
        with rows as batches:
            found = [summed(batch) for batch in batches]
        nats, tokens = (sum(float(one[i]) for one in found) for i in (0, 1))
        return HeldOutLoss(loss=nats / max(tokens, 1.0), tokens=int(tokens))

    return held_out_loss
