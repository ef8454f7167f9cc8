"""Rows side by side as batches, read ahead by grain's threads or worker processes.

With explicit ReadOptions: grain's defaults are five times slower on small elements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import grain
import numpy as np
from absl import flags
from jax import tree_util

from gemma_train.data.config import DataConfig
from gemma_train.data.damaged import SparedRows
from gemma_train.data.example import Batch, Layout, RowStream
from gemma_train.data.timed import TimedIterator
from gemma_train.errors import Stalled

_MOST_PLACES = 3  # of rows that are told where one process cannot see which one another reads


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Random access to the batches of one process, for grain."""

    rows: RowStream
    first_row: int = 0
    batch_rows: int
    batch_indices: tuple[int, ...]
    batches: int
    layout: Layout
    reading: dict[int, int] = field(default_factory=dict)  # by batch: the row that is being read

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
        batch = self.layout.padding(len(self.batch_indices))
        first = self.first_row + index * self.batch_rows
        for slot, offset in enumerate(self.batch_indices):
            self.reading[index] = first + offset
            self.rows.fill(first + offset, batch.row(slot))
        del self.reading[index]
        return batch

    def place(self, index: int) -> str:
        """What is being read for a batch, in words; of another process, what the batch is from."""
        if (row := self.reading.get(index)) is not None:
            return self.rows.place(row)
        first = self.first_row + index * self.batch_rows
        rows = [first + offset for offset in self.batch_indices]
        places = [self.rows.place(row) for row in rows[:_MOST_PLACES]]
        more = len(rows) - len(places)
        return ", ".join(places) + (f" or {more:,} more" if more else "")


class Batches(Iterator[Batch]):
    """An iterator of batches that reads ahead. `close` ends it, its threads and its processes.

    `damaged_rows` counts the rows of its batches so far that were left out as damaged. `next`
    raises what reading raised, in whichever thread or process, and `Stalled` when no batch has come
    within `seconds`.
    """

    def __init__(self, dataset: grain.IterDataset, source: BatchSource, *, seconds: float):
        def begin() -> Iterator[Batch]:
            iterator = iter(dataset)
            iterator.start_prefetch()
            return iterator

        self.damaged_rows = self._number = 0
        self._source = source
        self._batches = TimedIterator(
            begin, seconds=seconds, told=lambda: source.place(self._number)
        )

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if not str(error).startswith("Worker process was terminated"):
                raise
            raise Stalled(
                f"a process that reads ahead died ({str(error).partition('. ')[0]}), reading "
                f"{self._source.place(self._number)}: see above for what it said, or lower "
                "data.worker_processes where memory ran out (exit code -9)"
            ) from None
        self._number += 1
        if isinstance(self._source.rows, SparedRows):
            self.damaged_rows += batch.empty_rows
        return batch

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ahead(source: BatchSource, config: DataConfig) -> Batches:
    """The batches of a source in order, as many threads or processes ahead as the config says."""
    threads = min(config.read_threads, config.prefetch_batches)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=config.prefetch_batches if threads else 0
    )
    stream = grain.MapDataset.source(source).to_iter_dataset(options)
    if config.worker_processes:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only absl's own main parses
            flags.FLAGS.mark_as_parsed()
        workers = config.worker_processes
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers,
                per_worker_buffer_size=-(-config.prefetch_batches // workers),
            )
        ).map(_owned)
    return Batches(stream, source, seconds=60 * config.timeout_minutes)


def _owned(batch: Batch) -> Batch:
    """A copy in our own memory: a worker's is unmapped when grain's array is collected."""
    return tree_util.tree_map(np.array, batch)
