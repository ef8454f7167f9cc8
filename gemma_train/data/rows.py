"""Fixed rows by arithmetic: row i is tokens [i*t, i*t + t], one more than its length.

Rows overlap by one token, so that the last input of a row has its target, and every token but the
first is a target exactly once (design/data.md, decision 1). The last row is padded.
"""

import numpy as np

from gemma_train.data.example import Row
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
        return -(-(len(self._dataset) - 1) // self._length)

    def __getitem__(self, index: int) -> Row:
        """Row `index`: five arrays of `length` elements, as `Batch` describes them."""
        length = self._length
        tokens, starts = self._dataset.read(index * length, index * length + length + 1)
        present = tokens.size - 1
        ids = np.zeros(length + 1, np.int32)
        ids[: tokens.size] = tokens
        inner = starts[(starts > 0) & (starts < present)]  # documents that start within the inputs

        segments = np.zeros(length, np.int32)
        segments[0] = 1
        segments[inner] = 1
        segments = np.cumsum(segments, dtype=np.int32)
        begins = np.concatenate([[0], inner]).astype(np.int32)
        positions = np.arange(length, dtype=np.int32) - begins[segments - 1]
        weights = np.ones(length, np.float32)
        weights[starts[starts > 0] - 1] = 0  # the target is the <bos> of another document
        inputs = ids[:-1].copy()
        for values in (inputs, positions, segments, weights):
            values[present:] = 0
        return Row(inputs, ids[1:], positions, segments, weights)
