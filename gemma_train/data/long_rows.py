"""Long rows of held-out text: each one document, or where too few are so long, several on end.

Rows for training are cut by arithmetic and hold whatever documents fall into them. To ask what a
long context is good for, a row must be of one text from its first token to its last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np

from gemma_train import storage
from gemma_train.data.config import DataConfig
from gemma_train.data.shards import TokenDataset, check_tokenizer
from gemma_train.errors import require

_LEAST_ROWS = 2  # of which an interval can be told


@dataclass(frozen=True, kw_only=True)
class LongRows:
    """Rows cut from held-out documents, none of which overlap."""

    ids_bt: np.ndarray  # int32 [rows, length]: text behind the <bos> that its document begins with
    documents: int  # that they are cut from; 0 where rows join documents

    @property
    def told(self) -> str:
        """Where they come from, in words."""
        rows, length = self.ids_bt.shape
        cut = f"{rows} rows of {length:,} tokens"
        if self.documents:
            return f"{cut}, each within one of {self.documents} held-out documents"
        return f"{cut} that join documents, for fewer than {_LEAST_ROWS} would be within one"


@dataclass(frozen=True, kw_only=True)
class _Document:
    """Tokens [first, stop) of a dataset, `<bos>` to `<eos>`."""

    dataset: TokenDataset
    first: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.first


_Text = Sequence[_Document]  # on end


def long_rows(config: DataConfig, length: int, most: int) -> LongRows:
    """At most `most` rows of `length` tokens, spread evenly over the held-out text; no images.

    A document that several datasets hold is there once. Raises `UserError` where the held-out text
    has fewer than two such rows, or is of another tokenizer.
    """
    tokenizer_sha256 = storage.sha256(storage.existing(config.tokenizer, "tokenizer"))
    datasets = [TokenDataset(folder) for folder in config.held_out]
    for dataset in datasets:
        check_tokenizer(dataset.folder, dataset.description, config.tokenizer, tokenizer_sha256)
    datasets = [dataset for dataset in datasets if dataset.description.image is None]
    texts: list[_Text] = [[one] for one in _documents(datasets, least=length + 1)]
    places = _places(texts, length)
    joined = len(places) < _LEAST_ROWS
    if joined:
        texts = [_documents(datasets)]
        places = _places(texts, length)
        (every,) = texts
        require(
            len(places) >= _LEAST_ROWS,
            f"the held-out text has {sum(one.tokens for one in every):,} tokens without images in "
            f"{len(every):,} documents, {len(places)} rows of {length:,}, and an interval needs "
            f"{_LEAST_ROWS}: ask for shorter lengths, or prepare more held-out text",
        )
    rows = min(most, len(places))
    chosen = [places[row * len(places) // rows] for row in range(rows)]
    return LongRows(
        ids_bt=np.stack([_read(texts[one], start, length) for one, start in chosen]),
        documents=0 if joined else len({one for one, _ in chosen}),
    )


def _documents(datasets: Sequence[TokenDataset], least: int = 1) -> list[_Document]:
    """Those of at least so many tokens, each once: a dataset may be another's long documents."""
    found: dict[bytes, _Document] = {}
    for dataset in datasets:
        for first, stop in pairwise([*dataset.document_starts().tolist(), len(dataset)]):
            if stop - first >= least:
                content = dataset.read(first, stop)[0].tobytes()
                document = _Document(dataset=dataset, first=first, stop=stop)
                found.setdefault(sha256(content).digest(), document)
    return list(found.values())


def _places(texts: Sequence[_Text], length: int) -> list[tuple[int, int]]:
    """(text, place) where rows of `length` tokens begin, one behind the other after `<bos>`."""
    return [
        (number, start)
        for number, text in enumerate(texts)
        for start in range(1, sum(one.tokens for one in text) - length + 1, length)
    ]


def _read(text: _Text, start: int, length: int) -> np.ndarray:
    """Tokens [start, start + length) of a text, int32."""
    parts, wanted = [], length
    for one in text:
        if start < one.tokens and wanted:
            first = one.first + start
            parts.append(one.dataset.read(first, min(first + wanted, one.stop))[0])
            wanted -= parts[-1].size
        start = max(start - one.tokens, 0)
    return np.concatenate(parts).astype(np.int32)
