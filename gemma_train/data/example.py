"""The record: the batch that the trainer reads, field by field, and one row of it."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jax import tree_util


class Row(NamedTuple):
    """One row of `t` tokens: the fields of `Batch` without its first axis."""

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

    def row(self, index: int) -> Row:
        """Views of one row, to read or to fill."""
        return Row(*(getattr(self, field.name)[index] for field in fields(self)))


def padding(rows: int, length: int) -> Batch:
    """A batch of padding alone, to be filled row by row."""
    types = {"weights_bt": np.float32}
    names = [field.name for field in fields(Batch)]
    return Batch(**{name: np.zeros((rows, length), types.get(name, np.int32)) for name in names})
