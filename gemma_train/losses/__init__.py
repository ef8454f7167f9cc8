"""Losses: a config value each, and one function from (model, batch) to the sums of a step."""

import jax

from gemma_train.data.example import Batch
from gemma_train.losses.distillation import Distillation, distillation_loss, taught
from gemma_train.losses.next_token import (
    NextToken,
    mean_next_token_loss,
    mean_next_token_loss_and_gradient,
    next_token_loss,
)
from gemma_train.model import Gemma

__all__ = [
    "Distillation",
    "NextToken",
    "mean_next_token_loss",
    "mean_next_token_loss_and_gradient",
    "next_token_loss",
    "training_loss",
]


def training_loss(
    model: Gemma,
    batch: Batch,
    token_weight: jax.Array,
    config: NextToken | Distillation,
    teacher: Gemma | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(loss, cross-entropy of the text's own tokens): sums over the batch, as the config asks.

    `teacher` is the model of an online one, else None.
    """
    match config:
        case NextToken():
            return next_token_loss(model, batch, token_weight, config)
        case Distillation():
            if teacher is not None:
                batch = taught(teacher, batch, config)
            return distillation_loss(model, batch, token_weight, config)
