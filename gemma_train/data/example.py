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
    candidates: np.ndarray | None = None  # [t, q]
    probabilities: np.ndarray | None = None


@tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows side by side, arrays of shape [b, t] or [b, t, q]. A JAX pytree; here of NumPy."""

    tokens_bt: np.ndarray  # int32: the input ids, 0 where there is padding
    targets_bt: np.ndarray  # int32: the id that follows each input, 0 where there is padding
    positions_bt: np.ndarray  # int32: from 0 in every document, and from 0 where the row begins
    segments_bt: np.ndarray  # int32: the document within the row, from 1; 0 is padding
    weights_bt: np.ndarray  # float32: 1 where the target counts; 0 for padding and another document
    candidates_btq: np.ndarray | None = None  # int32: the teacher's tokens; some may be equal
    probabilities_btq: np.ndarray | None = None  # float32: their weights; all 0 where it is silent

    def row(self, index: int) -> Row:
        """Views of one row, to read or to fill."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Row(*(None if array is None else array[index] for array in arrays))


def padding(rows: int, length: int, candidates: int = 0) -> Batch:
    """A batch of padding alone, to be filled row by row; with so many candidates a position."""
    types = {"weights_bt": np.float32, "probabilities_btq": np.float32}
    shapes = {"bt": (rows, length)} | ({"btq": (rows, length, candidates)} if candidates else {})
    arrays = {}
    for field in fields(Batch):
        if shape := shapes.get(field.name.rpartition("_")[2]):
            arrays[field.name] = np.zeros(shape, types.get(field.name, np.int32))
    return Batch(**arrays)
