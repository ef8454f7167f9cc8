"""Losses: a config value each, and one function from (model, batch) to the sums of a step."""

from gemma_train.losses.next_token import (
    NextToken,
    mean_next_token_loss,
    mean_next_token_loss_and_gradient,
    next_token_loss,
)

__all__ = [
    "NextToken",
    "mean_next_token_loss",
    "mean_next_token_loss_and_gradient",
    "next_token_loss",
]
