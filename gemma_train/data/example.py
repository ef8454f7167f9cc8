"""The record: the batch that the trainer reads, field by field, and one row of it."""

from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
from jax import tree_util

# The axes of a field, by how many it has: the letters at the end of its name.
LETTERS = {2: "bt", 3: "btq", 4: "bipe"}


class Row(NamedTuple):
    """One row of `t` tokens: the fields of `Batch` without its first axis."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    candidates: np.ndarray | None = None  # [t, q]
    probabilities: np.ndarray | None = None
    soft: np.ndarray | None = None
    images: np.ndarray | None = None  # [i, p, e]

    def clear(self) -> None:
        """Make it padding again."""
        for name, array in self._asdict().items():
            if array is not None:
                array.fill(-1 if name == "soft" else 0)


class RowStream(Protocol):
    """Rows by their place in a stream."""

    def fill(self, index: int, row: Row) -> None:
        """Write the row at a place into arrays of padding."""
        ...

    def place(self, index: int) -> str:
        """Where that row comes from, in words."""
        ...


@tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows side by side, arrays of shape [b, t] and more. A JAX pytree; here of NumPy."""

    tokens_bt: np.ndarray  # int32: the input ids, 0 for padding and where soft tokens stand
    targets_bt: np.ndarray  # int32: the id that follows each input, 0 where there is padding
    positions_bt: np.ndarray  # int32: from 0 in every document, and from 0 where the row begins
    segments_bt: np.ndarray  # int32: the document within the row, from 1; 0 is padding
    weights_bt: np.ndarray  # float32: 1 where the target counts; 0 if padding, soft or another text
    candidates_btq: np.ndarray | None = None  # int32: the teacher's tokens; some may be equal
    probabilities_btq: np.ndarray | None = None  # float32: their weights; all 0 where it is silent
    soft_bt: np.ndarray | None = None  # int32: image * p + soft token that stands there; -1 is text
    images_bipe: np.ndarray | None = None  # bfloat16: the embeddings of each row's images, or 0

    def row(self, index: int) -> Row:
        """Views of one row, to read or to fill."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Row(*(None if array is None else array[index] for array in arrays))

    @property
    def empty_rows(self) -> int:
        """How many rows are padding alone: a row that holds anything begins with a document."""
        return int((self.segments_bt[:, 0] == 0).sum())


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes that all batches of a run have."""

    length: int  # tokens of a row
    candidates: int = 0  # of a teacher, at each position
    images: tuple[int, int, int] | None = None  # of a row: images, soft tokens of one, width

    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """(shape, dtype) of each field of a batch of so many rows."""
        bt = (rows, self.length)
        names = dict.fromkeys([field.name for field in fields(Batch)][:5], bt)
        if self.candidates:
            names |= dict.fromkeys(("candidates_btq", "probabilities_btq"), (*bt, self.candidates))
        if self.images:
            names |= {"soft_bt": bt, "images_bipe": (rows, *self.images)}
        return {
            name: (shape, np.dtype(_TYPES.get(name, np.int32))) for name, shape in names.items()
        }

    def padding(self, rows: int) -> Batch:
        """A batch of padding alone, to be filled row by row."""
        arrays = {name: np.zeros(*array) for name, array in self.arrays(rows).items()}
        if self.images:
            arrays["soft_bt"].fill(-1)
        return Batch(**arrays)


_TYPES = {
    "weights_bt": np.dtype(np.float32),
    "probabilities_btq": np.dtype(np.float32),
    "images_bipe": np.dtype(ml_dtypes.bfloat16),
}
