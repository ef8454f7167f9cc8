"""Rows with images: which tokens make a row so that none is cut, and what a row holds of each.

A row has room for so many images, whether it has them or not: its arrays are of one shape.
"""

from dataclasses import dataclass

import numpy as np

from gemma_train.data.example import Row
from gemma_train.data.images.store import EmbeddingStore
from gemma_train.data.shards import IMAGE, ImageSpan, TokenDataset
from gemma_train.errors import Damaged, UserError, require


@dataclass(frozen=True, kw_only=True)
class RowImages:
    """The store that embeddings are read from, and the most of them in a row."""

    store: EmbeddingStore
    per_row: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row's embeddings: [i, p, e]."""
        return self.per_row, self.store.head.tokens, self.store.head.width

    def starts(self, dataset: TokenDataset, length: int) -> np.ndarray:
        """int64 [rows + 1]: where each row of a dataset with images starts, and the last ends.

        Raises `UserError` for images of another size than the store's, and for too short rows.
        """
        span, head = dataset.description.image, self.store.head
        assert span is not None
        require(
            span.tokens == head.tokens,
            f"dataset {dataset.folder!r} has {span.tokens} soft tokens an image, the embeddings "
            f"in {self.store.folder!r} {head.tokens}: prepare it again, or name another store",
        )
        require(
            span.length <= length,
            f"data.sequence_length is {length}, and an image of {dataset.folder!r} takes "
            f"{span.length}: make it longer",
        )
        spans = dataset.image_starts() - span.before
        ends = np.concatenate([[0], spans + span.length])
        if (np.append(spans, len(dataset)) < ends).any():
            raise Damaged(
                f"dataset {dataset.folder!r} is damaged: its images do not stand one after the "
                "other: remove its folder and run gemma-train prepare again"
            )
        return row_starts(len(dataset), spans, span, length=length, per_row=self.per_row)

    def fill(self, images: np.ndarray, row: Row, present: int) -> None:
        """Write the images of a row of `present` tokens, `IMAGE` as a dataset tells them.

        No soft token is a target. Raises `UserError` where embeddings are damaged or not there.
        """
        assert images.dtype == IMAGE and row.soft is not None and row.images is not None
        tokens = self.store.head.tokens
        for number, (start, image) in enumerate(images.tolist()):
            row.weights[max(start - 1, 0) : start + tokens - 1] = 0  # they would be targets there
            if start == present:  # of the next row; here a target alone
                break
            row.soft[start : start + tokens] = number * tokens + np.arange(tokens)
            row.images[number] = self.store.read(image)


def row_starts(
    tokens: int, spans: np.ndarray, span: ImageSpan, *, length: int, per_row: int
) -> np.ndarray:
    """int64 [rows + 1] of a stream of `tokens`, images standing at [spans, spans + span.length).

    Every row is `length` long or ends before an image that it has no room for.
    """
    starts, position, first, last = [np.zeros(1, np.int64)], 0, 0, tokens - 1
    while position < last:
        ahead = int(spans[first]) if first < len(spans) else last
        if whole := (ahead - position) // length:  # rows of text alone
            starts.append(position + length * np.arange(1, whole + 1))
            position += whole * length
            continue
        end = position + length
        until = first + int(np.searchsorted(spans[first : first + per_row + 1], end))
        if until > first + per_row:
            until = first + per_row
            end = int(spans[until])
        elif until > first and spans[until - 1] + span.length > end:
            until -= 1
            end = int(spans[until])
        position, first = min(end, last), until
        starts.append(np.array([position]))
    return np.concatenate(starts)


def no_images(dataset: TokenDataset) -> UserError:
    """Why a dataset with images cannot be read as text."""
    return UserError(
        f"dataset {dataset.folder!r} has images: name the store of their embeddings "
        "(data.images=ImageRows(store=...))"
    )
