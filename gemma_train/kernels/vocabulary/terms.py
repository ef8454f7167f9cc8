"""What the vocabulary loss is asked: what tokens are to predict, and what their loss is made of."""

from dataclasses import dataclass
from typing import Literal

import jax


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """What the loss of a token is made of, and how many are computed at a time."""

    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator
    soft_cap: float | None = None  # cap * tanh(logits / cap) (Gemma 2)
    chunk: int = 1024  # tokens of each device whose logits exist at one time
    temperature: float = 1.0  # of soft targets: divides the logits
    student: Literal["full", "candidates"] = "full"  # tokens that the softmax runs over
    soft_form: Literal["one_hot", "scatter"] | None = None  # of soft targets; None: by the mesh


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the tokens are to predict: one token each or, where there are weights, these.

    Without candidates and `hard_weights_bt` the text's token is the target, with weight 1.
    """

    hard_bt: jax.Array  # int32: the text's own next token
    candidates_btq: jax.Array | None = None  # int32; equal ones add up, ids outside weigh nothing
    probabilities_btq: jax.Array | None = None  # float32; they need not sum to 1
    scales_btq: jax.Array | None = None  # which they are multiplied by; None: 1
    hard_weights_bt: jax.Array | None = None  # float32: weight of the text's token beside them

    @property
    def is_hard(self) -> bool:
        return self.candidates_btq is None and self.hard_weights_bt is None

    def of_chunk(self, first_row: jax.Array | int) -> "ChunkTargets":
        """The same, where the arrays are a chunk's: with ids that count from a row of the table."""
        candidates_cq = self.candidates_btq
        return ChunkTargets(
            hard_c=self.hard_bt - first_row,
            candidates_cq=None if candidates_cq is None else candidates_cq - first_row,
            probabilities_cq=self.probabilities_btq,
            scales_cq=self.scales_btq,
            hard_weights_c=self.hard_weights_bt,
        )


@dataclass(frozen=True, kw_only=True)
class ChunkTargets:
    """`Targets` of a chunk of tokens; ids count from this device's first row, some are negative."""

    hard_c: jax.Array
    candidates_cq: jax.Array | None
    probabilities_cq: jax.Array | None
    scales_cq: jax.Array | None
    hard_weights_c: jax.Array | None
