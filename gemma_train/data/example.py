"""The record: one row of tokens and the batch that the trainer reads, field by field."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jax import tree_util


class Row(NamedTuple):
    """One row of `t` tokens; the fields of `Batch` without its first axis."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


@tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows side by side, each array of shape [b, t]. A JAX pytree; here its leaves are NumPy."""

    tokens_bt: np.ndarray  # int32: the input ids, 0 where there is padding
    targets_bt: np.ndarray  # int32: the id that follows each input, 0 where there is padding
    positions_bt: np.ndarray  # int32: from 0 in every document, and from 0 where the row begins
    segments_bt: np.ndarray  # int32: the document within the row, from 1; 0 is padding
    weights_bt: np.ndarray  # float32: 1 where the target counts; 0 for padding and another document


def stack(rows: Sequence[Row]) -> Batch:
    """The batch of these rows, in this order."""
    names = [field.name for field in fields(Batch)]
    return Batch(**dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True)))


def padding(length: int) -> Row:
    """A row without any document, to fill the last batch of an evaluation."""
    zeros = np.zeros(length, np.int32)
    return Row(zeros, zeros, zeros, zeros, np.zeros(length, np.float32))
