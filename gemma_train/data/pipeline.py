"""From datasets on disk to batches: one stream of rows, whose position is one integer.

Row r of the stream is a function of the config and r alone, so that it is the same for any number
of hosts, threads and worker processes, and training resumes at any row. Reading is grain's, with
explicit ReadOptions: its defaults are five times slower on small elements (design/data.md 1.5).
"""

import bisect
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, Self

import grain
import numpy as np
from absl import flags
from jax import tree_util

from gemma_train import storage
from gemma_train.data.example import Batch, Row, padding
from gemma_train.data.mixture import Schedule, quotas
from gemma_train.data.rows import Rows
from gemma_train.data.shards import (
    TokenDataset,
    check_tokenizer,
    check_vocabulary,
    sidecar_sha256,
)
from gemma_train.data.teacher_store.reading import TaughtRows, TeacherStore
from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """A dataset of the training mixture."""

    path: str  # folder of a dataset that gemma-train prepare wrote, such as data/quickstart/train
    weight: float = 1.0  # share of the rows, relative to the other sources; 0 leaves it out
    taught: bool = True  # whether a distilled run's teacher speaks of its rows, or the text alone

    def __post_init__(self):
        require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"weight of {self.path!r} is {self.weight}: must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how."""

    tokenizer: str  # path of the SentencePiece model that the datasets were made with
    train: tuple[TokenSource, ...]  # the mixture to train on
    held_out: tuple[str, ...] = ()  # folders of the datasets to evaluate on
    sequence_length: int = 2_048  # tokens in a row
    batch_rows: int = 8  # rows (sequences) in a step, over all devices
    shuffle_seed: int = 0  # another seed is another order of the same rows
    read_threads: int = 2  # threads that read batches ahead, per process; 0 reads when asked
    prefetch_batches: int = 8  # batches read ahead, per process
    worker_processes: int = 0  # processes that read ahead; 0 uses the threads alone

    def __post_init__(self):
        require(
            isinstance(self.train, tuple) and any(source.weight for source in self.train),
            f"data.train is {self.train!r}: give a tuple with a TokenSource of weight above 0",
        )
        require(
            isinstance(self.held_out, tuple),
            f"data.held_out is {self.held_out!r}: give a tuple of folders, as in ('data/x',)",
        )
        for name in ("sequence_length", "batch_rows", "prefetch_batches"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name} is {value}: must be at least 1")
        for name in ("shuffle_seed", "read_threads", "worker_processes"):
            value = getattr(self, name)
            require(value >= 0, f"data.{name} is {value}: must be 0 or more")


class Batches(Iterator[Batch]):
    """An iterator of batches that reads ahead. `close` ends it, its threads and its processes."""

    def __init__(self, dataset: grain.IterDataset):
        self._iterator: Any = iter(dataset)
        self._iterator.start_prefetch()

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    of the sources that are taught. Raises `UserError` for datasets that are missing, damaged or
    made with another tokenizer, and for targets that are.
    """
    require(start_row >= 0, f"start_row is {start_row}: must be 0 or more")
    source = _BatchSource(
        rows=training_rows(config, teacher),
        first_row=start_row,
        batch_rows=config.batch_rows,
        batch_indices=tuple(batch_indices),
        batches=(sys.maxsize - start_row) // config.batch_rows,
        length=config.sequence_length,
        candidates=teacher.codec.candidates if teacher else 0,
    )
    return _read_ahead(source, config)


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
    source = _BatchSource(
        rows=_ListedRows(_open(paths, config), rows),
        batch_rows=batch_rows,
        batch_indices=tuple(batch_indices),
        batches=-(-len(rows) // batch_rows),
        length=config.sequence_length,
    )
    return _read_ahead(source, config)


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
    rows = _HeldOutRows(_open(config.held_out, config), maximum_rows)
    source = _BatchSource(
        rows=rows,
        batch_rows=batch_rows,
        batch_indices=tuple(range(batch_rows) if batch_indices is None else batch_indices),
        batches=-(-len(rows) // batch_rows),
        length=config.sequence_length,
    )
    return _read_ahead(source, config)


def unigram_entropy(config: DataConfig, *, maximum_rows: int | None = None) -> float:
    """Nats a token of the held-out targets' own unigram distribution.

    The loss of a model that knows only how often each token occurs; over the same rows as
    `held_out_batches` with this `maximum_rows`, targets of weight 0 left out.
    """
    counts = np.zeros(0, np.int64)
    with held_out_batches(config, batch_rows=8, maximum_rows=maximum_rows) as stream:
        for batch in stream:
            found = np.bincount(batch.targets_bt[batch.weights_bt > 0], minlength=counts.size)
            found[: counts.size] += counts
            counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


class _FillsRows(Protocol):
    def fill(self, index: int, row: Row) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _BatchSource:
    """Random access to the batches of one process, for grain."""

    rows: _FillsRows
    first_row: int = 0
    batch_rows: int
    batch_indices: tuple[int, ...]
    batches: int
    length: int
    candidates: int = 0  # of a teacher, at each position

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
        batch = padding(len(self.batch_indices), self.length, self.candidates)
        first = self.first_row + index * self.batch_rows
        for slot, offset in enumerate(self.batch_indices):
            self.rows.fill(first + offset, batch.row(slot))
        return batch


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The endless stream: which component's turn it is, and which of its rows."""

    components: list[Rows]
    orders: list[grain.MapDataset]  # of row numbers; shuffling the rows themselves costs 45 us each
    schedule: Schedule
    teachers: list[TaughtRows | None]  # of each component

    def fill(self, index: int, row: Row) -> None:
        component, turn = self.schedule[index]
        number = self.orders[component][turn]
        self.components[component].fill(number, row)
        if teacher := self.teachers[component]:
            teacher.fill(number, row)

    def first_epoch(self, component: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(places, numbers) of a component's distinct rows among the first `rows` of the stream."""
        places = self.schedule.places(component, rows, len(self.components[component]))
        order = self.orders[component]
        numbers = np.fromiter((order[turn] for turn in range(places.size)), np.int64, places.size)
        return places, numbers

    def distinct(self, component: int, rows: int) -> np.ndarray:
        """The numbers of `first_epoch` in any order: if it is a whole one, at once."""
        most = len(self.components[component])
        if self.schedule.places(component, rows, most).size == most:
            return np.arange(most)
        return self.first_epoch(component, rows)[1]


class _ListedRows:
    """Rows of some datasets as listed; what follows stays padding."""

    def __init__(self, datasets: list[Rows], listed: np.ndarray):
        self._datasets, self._listed = datasets, listed

    def fill(self, index: int, row: Row) -> None:
        if index < len(self._listed):
            dataset, number = self._listed[index].tolist()
            self._datasets[dataset].fill(number, row)


class _HeldOutRows:
    """At most `maximum` rows of some datasets, evenly spread; what follows stays padding."""

    def __init__(self, datasets: list[Rows], maximum: int | None):
        self._datasets = datasets
        self._starts = [0, *accumulate(map(len, datasets))]
        total = self._starts[-1]
        self._rows = total if maximum is None else min(maximum, total)

    def __len__(self) -> int:
        return self._rows

    def fill(self, index: int, row: Row) -> None:
        if index < self._rows:
            chosen = index * self._starts[-1] // self._rows
            dataset = bisect.bisect_right(self._starts, chosen) - 1
            self._datasets[dataset].fill(chosen - self._starts[dataset], row)


def training_rows(config: DataConfig, teacher: TeacherStore | None = None) -> TrainingRows:
    """The stream of a config's rows, with their targets where there is a store of them."""
    used = [(index, source) for index, source in enumerate(config.train) if source.weight]
    components = _open([source.path for _, source in used], config)
    orders = []
    for (index, _), rows in zip(used, components, strict=True):
        # `seed(s)` hashes s; `shuffle(seed=s)` would make epoch 1 of seed 0 epoch 0 of seed 1.
        seed = int(np.random.SeedSequence((config.shuffle_seed, index)).generate_state(1)[0])
        orders.append(grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat())
    schedule = Schedule(quotas([source.weight for _, source in used]))
    teachers = [
        teacher.rows_of(source.path, sidecar_sha256(source.path))
        if teacher and source.taught
        else None
        for _, source in used
    ]
    return TrainingRows(components=components, orders=orders, schedule=schedule, teachers=teachers)


def check(config: DataConfig, vocabulary: int) -> None:
    """Raise `UserError` unless all datasets are whole, made with the config's tokenizer, and hold
    ids of a model with so many embedding rows; before a run allocates anything."""
    folders = [*(source.path for source in config.train), *config.held_out]
    _open(folders, config)
    for folder in folders:
        check_vocabulary(folder, vocabulary)


def _open(paths: Sequence[str], config: DataConfig) -> list[Rows]:
    """The rows of these datasets, all made with the config's tokenizer."""
    sha256 = storage.sha256(storage.existing(config.tokenizer, "tokenizer"))
    datasets = [TokenDataset(path) for path in paths]
    for dataset in datasets:
        check_tokenizer(dataset.folder, dataset.description, config.tokenizer, sha256)
    return [Rows(dataset, config.sequence_length) for dataset in datasets]


def _read_ahead(source: _BatchSource, config: DataConfig) -> Batches:
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
    return Batches(stream)


def _owned(batch: Batch) -> Batch:
    """A copy in our own memory: a worker's is unmapped when grain's array is collected."""
    return tree_util.tree_map(np.array, batch)
