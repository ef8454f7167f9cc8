"""From datasets on disk to batches: one stream of rows, whose position is one integer.

Here are the doors; behind them `streams` says which row stands at which place, and `batching` puts
rows side by side and reads ahead.
"""

import sys
from collections.abc import Sequence

import numpy as np

from gemma_train.data.batching import Batches, BatchSource, read_ahead
from gemma_train.data.config import DataConfig
from gemma_train.data.damaged import SparedRows
from gemma_train.data.example import Layout
from gemma_train.data.images.store import read_head
from gemma_train.data.shards import check_vocabulary
from gemma_train.data.streams import HeldOutRows, ListedRows, open_rows, training_rows
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import require


def batches(
    config: DataConfig,
    *,
    start_row: int,
    batch_indices: Sequence[int],
    teacher: TeacherStore | None = None,
) -> Batches:
    """Endless training batches: the k-th has rows start_row + k * batch_rows + batch_indices.

    `batch_indices` are the rows of the global batch that this process needs, in the order wanted;
    a single process passes range(batch_rows). With a `teacher`, its candidates come with the rows
    of the sources that are taught. Rows that are found damaged when they are read end the stream
    or are left out, as `data.damaged` says. Raises `UserError` for datasets that are missing,
    damaged or made with another tokenizer, and for targets that are.
    """
    require(start_row >= 0, f"start_row is {start_row}: must be 0 or more")
    source = BatchSource(
        rows=SparedRows(training_rows(config, teacher), config.damaged),
        first_row=start_row,
        batch_rows=config.batch_rows,
        batch_indices=tuple(batch_indices),
        batches=(sys.maxsize - start_row) // config.batch_rows,
        layout=_layout(config, teacher),
    )
    return read_ahead(source, config)


def listed_batches(
    config: DataConfig,
    paths: Sequence[str],
    rows: np.ndarray,
    *,
    batch_rows: int,
    batch_indices: Sequence[int],
) -> Batches:
    """The listed rows in order, once: int [n, 2] of (place in `paths`, row of that dataset).

    The last batch is filled with rows of weight 0. `batch_indices` and errors as in `batches`.
    """
    listed = ListedRows(open_rows(paths, config), rows)
    return _once(listed, config, batch_rows=batch_rows, batch_indices=batch_indices)


def held_out_batches(
    config: DataConfig,
    *,
    batch_rows: int,
    maximum_rows: int | None = None,
    batch_indices: Sequence[int] | None = None,
) -> Batches:
    """Held-out rows in order, once; the last batch is filled with rows of weight 0.

    With `maximum_rows`, so many rows spread evenly over the datasets, the same at every call.
    `batch_indices` as in `batches`; all rows by default. Raises `UserError` like `batches`.
    """
    require(bool(config.held_out), "data.held_out is empty: name a dataset to evaluate on")
    rows = HeldOutRows(open_rows(config.held_out, config), maximum_rows)
    indices = range(batch_rows) if batch_indices is None else batch_indices
    return _once(rows, config, batch_rows=batch_rows, batch_indices=indices)


def check(config: DataConfig, vocabulary: int) -> None:
    """Raise `UserError` unless all datasets are whole, made with the config's tokenizer, and hold
    ids of a model with so many embedding rows; before a run allocates anything."""
    folders = [*(source.path for source in config.train), *config.held_out]
    open_rows(folders, config)
    for folder in folders:
        check_vocabulary(folder, vocabulary)


def _once(
    rows: ListedRows | HeldOutRows,
    config: DataConfig,
    *,
    batch_rows: int,
    batch_indices: Sequence[int],
) -> Batches:
    """Batches of rows that end; the last is filled with rows of weight 0."""
    source = BatchSource(
        rows=rows,
        batch_rows=batch_rows,
        batch_indices=tuple(batch_indices),
        batches=-(-len(rows) // batch_rows),
        layout=_layout(config),
    )
    return read_ahead(source, config)


def _layout(config: DataConfig, teacher: TeacherStore | None = None) -> Layout:
    shape = None
    if config.images is not None:
        head = read_head(config.images.store)
        shape = config.images.per_row, head.tokens, head.width
    return Layout(
        length=config.sequence_length,
        candidates=teacher.codec.candidates if teacher else 0,
        images=shape,
    )
