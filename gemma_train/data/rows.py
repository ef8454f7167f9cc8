"""Fixed rows by arithmetic: row i is tokens [i*t, i*t + t], one more than its length.

Rows overlap by one token, so that the last input of a row has its target, and every token but the
first is a target exactly once. The last row is padded; where there are images, so is one that would
cut an image or hold more of them than it has room for, and the next begins with that image.
"""

from itertools import pairwise

import numpy as np

from gemma_train.data.example import Layout, Row
from gemma_train.data.images.rows import RowImages, no_images
from gemma_train.data.shards import TokenDataset
from gemma_train.errors import require


class Rows:
    """The rows of a dataset, a random access source: `len(rows)`, `rows[i]`. Picklable."""

    def __init__(self, dataset: TokenDataset, length: int, images: RowImages | None = None):
        require(
            len(dataset) > 1,
            f"dataset {dataset.folder!r} holds {len(dataset)} tokens: a row needs two",
        )
        self._dataset, self._length, self._images = dataset, length, images
        self._starts: np.ndarray | None = None  # by arithmetic
        if dataset.description.image:
            if images is None:
                raise no_images(dataset)
            self._starts = images.starts(dataset, length)

    def __len__(self) -> int:
        if self._starts is not None:
            return len(self._starts) - 1
        return (len(self._dataset) - 2) // self._length + 1

    def __getitem__(self, index: int) -> Row:
        """Row `index`: arrays of `length` elements, as `Batch` describes them."""
        images = self._images.shape if self._images else None
        row = Layout(length=self._length, images=images).padding(1).row(0)
        self.fill(index, row)
        return row

    def place(self, index: int) -> str:
        """Which row it is, in words."""
        images = f" or its images in {self._images.store.folder!r}" if self._images else ""
        return f"row {index:,} of dataset {self._dataset.folder!r}{images}"

    def fill(self, index: int, row: Row) -> None:
        """Write row `index` into arrays of padding."""
        if self._starts is None:
            start, stop = index * self._length, (index + 1) * self._length
        else:
            start, stop = self._starts[index : index + 2].tolist()
        tokens, starts, images = self._dataset.read(start, stop + 1)
        starts, present = starts[starts > 0], tokens.size - 1
        row.tokens[:present] = tokens[:-1]
        row.targets[:present] = tokens[1:]
        row.weights[:present] = 1
        row.weights[starts - 1] = 0  # the target is the <bos> of another document
        ascending = np.arange(present, dtype=np.int32)
        for segment, (begin, end) in enumerate(pairwise([0, *starts.tolist(), present]), 1):
            row.segments[begin:end] = segment
            row.positions[begin:end] = ascending[: end - begin]
        if self._images and images.size:
            self._images.fill(images, row, present)
