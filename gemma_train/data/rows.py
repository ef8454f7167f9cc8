"""Fixed rows by arithmetic: row i is tokens [i*t, i*t + t], one more than its length.

Rows overlap by one token, so that the last input of a row has its target, and every token but the
first is a target exactly once. The last row is padded.
"""

from itertools import pairwise

import numpy as np

from gemma_train.data.example import Row, padding
from gemma_train.data.shards import TokenDataset
from gemma_train.errors import require


class Rows:
    """The rows of a dataset, a random access source: `len(rows)`, `rows[i]`. Picklable."""

    def __init__(self, dataset: TokenDataset, length: int):
        require(
            len(dataset) > 1,
            f"dataset {dataset.folder!r} holds {len(dataset)} tokens: a row needs two",
        )
        self._dataset, self._length = dataset, length

    def __len__(self) -> int:
        return (len(self._dataset) - 2) // self._length + 1

    def __getitem__(self, index: int) -> Row:
        """Row `index`: five arrays of `length` elements, as `Batch` describes them."""
        row = padding(1, self._length).row(0)
        self.fill(index, row)
        return row

    def fill(self, index: int, row: Row) -> None:
        """Write row `index` into arrays of padding."""
        start = index * self._length
        tokens, starts, _ = self._dataset.read(start, start + self._length + 1)
        starts, present = starts[starts > 0], tokens.size - 1
        row.tokens[:present] = tokens[:-1]
        row.targets[:present] = tokens[1:]
        row.weights[:present] = 1
        row.weights[starts - 1] = 0  # the target is the <bos> of another document
        ascending = np.arange(present, dtype=np.int32)
        for segment, (begin, end) in enumerate(pairwise([0, *starts.tolist(), present]), 1):
            row.segments[begin:end] = segment
            row.positions[begin:end] = ascending[: end - begin]
