"""Long rows of held-out text: each one document, or where none is so long, several on end.

Rows for training are cut by arithmetic and hold whatever documents fall into them. To ask what a
long context is good for, a row must be of one text from its first token to its last.
"""

from dataclasses import dataclass

import numpy as np

from gemma_train import storage
from gemma_train.data.config import DataConfig
from gemma_train.data.shards import TokenDataset, check_tokenizer
from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class LongRows:
    """Rows cut from held-out documents, none of which overlap in what is predicted."""

    ids_bt: np.ndarray  # int32 [rows, length + 1]: the inputs and, one later, their targets
    documents: int  # that they are cut from; 0 where rows join documents

    @property
    def told(self) -> str:
        """Where they come from, in words."""
        rows, length = self.ids_bt.shape
        cut = f"{rows} rows of {length - 1:,} tokens"
        if self.documents:
            return f"{cut}, each within one of {self.documents} held-out documents"
        return f"{cut} that join documents, for no held-out document is so long"


def long_rows(config: DataConfig, length: int, most: int) -> LongRows:
    """At most `most` rows of `length` tokens, spread evenly over the held-out text; no images.

    Raises `UserError` where the held-out text has no such row, or is of another tokenizer.
    """
    sha256 = storage.sha256(storage.existing(config.tokenizer, "tokenizer"))
    datasets = [TokenDataset(folder) for folder in config.held_out]
    for dataset in datasets:
        check_tokenizer(dataset.folder, dataset.description, config.tokenizer, sha256)
    datasets = [dataset for dataset in datasets if dataset.description.image is None]
    starts = [dataset.document_starts() for dataset in datasets]
    places = _places(datasets, starts, length)
    joined = not places
    if joined:
        places = _places(datasets, [own[:1] for own in starts], length)
    tokens = sum(map(len, datasets))
    require(
        bool(places),
        f"the held-out text has {tokens:,} tokens without images, none of its datasets a row of "
        f"{length:,}: ask for shorter lengths, or prepare more held-out text",
    )
    rows = min(most, len(places))
    chosen = [places[row * len(places) // rows] for row in range(rows)]
    ids_bt = np.stack([datasets[one].read(start, start + length + 1)[0] for one, start in chosen])
    documents = {
        (one, int(np.searchsorted(starts[one], start, side="right"))) for one, start in chosen
    }
    return LongRows(ids_bt=ids_bt.astype(np.int32), documents=0 if joined else len(documents))


def _places(
    datasets: list[TokenDataset], starts: list[np.ndarray], length: int
) -> list[tuple[int, int]]:
    """(dataset, place) where rows of `length` tokens begin, one behind the other in each text."""
    return [
        (number, start)
        for number, dataset in enumerate(datasets)
        for first, stop in zip(starts[number], [*starts[number][1:], len(dataset)], strict=True)
        for start in range(int(first), int(stop) - length, length)
    ]
