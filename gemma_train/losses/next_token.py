"""Cross-entropy of the next token, with an optional z-loss: training from hard labels."""

from dataclasses import dataclass

import jax

from gemma_train.data.example import Batch
from gemma_train.errors import require
from gemma_train.kernels.vocabulary_loss import LossTerms, vocabulary_loss
from gemma_train.model import Gemma


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Train on the token that follows, as text gives it."""

    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator
    chunk: int = 1024  # tokens per device whose logits exist at one time

    def __post_init__(self) -> None:
        require(
            0.0 <= self.z_loss < 1.0,
            f"loss.z_loss is {self.z_loss}: it must lie between 0 and 1 (1e-4 is usual)",
        )
        require(self.chunk >= 1, f"loss.chunk is {self.chunk}: it must be at least 1")


def next_token_loss(
    model: Gemma, batch: Batch, token_weight: jax.Array, config: NextToken
) -> tuple[jax.Array, jax.Array]:
    """(loss with z-loss, cross-entropy): float32 sums over tokens of batch weight * token_weight.

    `token_weight` is 1 / (tokens with loss in the whole step), so that sums over microbatches are
    the step's means in nats per token.
    """
    states_btd, _ = model(batch.tokens_bt, batch.positions_bt, batch.segments_bt)
    terms = LossTerms(
        z_loss=config.z_loss, soft_cap=model.config.final_soft_cap, chunk=config.chunk
    )
    return vocabulary_loss(
        states_btd,
        model.embedding.table[...],
        batch.targets_bt,
        batch.weights_bt * token_weight,
        terms,
    )
