"""Streams of rows over datasets: which row stands at which place.

Row r of a stream is a function of the config and r alone, so that it is the same for any number of
hosts, threads and worker processes, and training resumes at any row. What fills a row is asked for
one number at a time: a dataset its tokens, then a teacher's store its targets.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import grain
import numpy as np

from gemma_train import storage
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Row
from gemma_train.data.images.rows import RowImages
from gemma_train.data.images.store import EmbeddingStore
from gemma_train.data.mixture import Schedule, quotas
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset, check_tokenizer, sidecar_sha256
from gemma_train.data.teacher_store.reading import TaughtRows, TeacherStore


@dataclass(frozen=True, kw_only=True)
class Component:
    """A dataset of the mixture: its rows in an order of their own, epoch after epoch."""

    rows: Rows
    order: grain.MapDataset  # of row numbers; shuffling the rows themselves costs 45 us each
    teacher: TaughtRows | None  # that speaks of these rows

    def fill(self, turn: int, row: Row) -> None:
        number = self.order[turn]
        self.rows.fill(number, row)
        if self.teacher:
            self.teacher.fill(number, row)

    def place(self, turn: int) -> str:
        targets = f" or its targets in {self.teacher.store.folder!r}" if self.teacher else ""
        return self.rows.place(self.order[turn]) + targets


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The endless stream: which component's turn it is, and which of its rows."""

    components: list[Component]
    schedule: Schedule

    def fill(self, index: int, row: Row) -> None:
        component, turn = self.schedule[index]
        self.components[component].fill(turn, row)

    def place(self, index: int) -> str:
        component, turn = self.schedule[index]
        return self.components[component].place(turn)

    def first_epoch(self, component: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(places, numbers) of a component's distinct rows among the first `rows` of the stream."""
        one = self.components[component]
        places = self.schedule.places(component, rows, len(one.rows))
        turns = range(places.size)
        return places, np.fromiter((one.order[turn] for turn in turns), np.int64, places.size)

    def distinct(self, component: int, rows: int) -> np.ndarray:
        """The numbers of `first_epoch` in any order: if it is a whole one, at once."""
        most = len(self.components[component].rows)
        if self.schedule.places(component, rows, most).size == most:
            return np.arange(most)
        return self.first_epoch(component, rows)[1]


class ListedRows:
    """Rows of some datasets as listed; what follows stays padding."""

    def __init__(self, datasets: list[Rows], listed: np.ndarray):
        self._datasets, self._listed = datasets, listed

    def __len__(self) -> int:
        return len(self._listed)

    def fill(self, index: int, row: Row) -> None:
        if index < len(self._listed):
            dataset, number = self._listed[index].tolist()
            self._datasets[dataset].fill(number, row)

    def place(self, index: int) -> str:
        if index >= len(self._listed):
            return "padding"
        dataset, number = self._listed[index].tolist()
        return self._datasets[dataset].place(number)


class HeldOutRows:
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
            dataset, number = self._find(index)
            dataset.fill(number, row)

    def place(self, index: int) -> str:
        if index >= self._rows:
            return "padding"
        dataset, number = self._find(index)
        return dataset.place(number)

    def _find(self, index: int) -> tuple[Rows, int]:
        chosen = index * self._starts[-1] // self._rows
        dataset = bisect.bisect_right(self._starts, chosen) - 1
        return self._datasets[dataset], chosen - self._starts[dataset]


def training_rows(config: DataConfig, teacher: TeacherStore | None = None) -> TrainingRows:
    """The stream of a config's rows, with their targets where there is a store of them."""
    used = [(index, source) for index, source in enumerate(config.train) if source.weight]
    datasets = open_rows([source.path for _, source in used], config)
    components = [
        Component(
            rows=rows,
            order=_shuffled(len(rows), config.shuffle_seed, index),
            teacher=_teacher_of(source, teacher),
        )
        for (index, source), rows in zip(used, datasets, strict=True)
    ]
    schedule = Schedule(quotas([source.weight for _, source in used]))
    return TrainingRows(components=components, schedule=schedule)


def open_rows(paths: Sequence[str], config: DataConfig) -> list[Rows]:
    """The rows of these datasets, all made with the config's tokenizer."""
    sha256 = storage.sha256(storage.existing(config.tokenizer, "tokenizer"))
    files = storage.OpenFiles()  # of all: a mixture of many sources has no more open than one
    datasets = [TokenDataset(path, files) for path in paths]
    for dataset in datasets:
        check_tokenizer(dataset.folder, dataset.description, config.tokenizer, sha256)
    images = row_images(config)
    return [Rows(dataset, config.sequence_length, images) for dataset in datasets]


def row_images(config: DataConfig) -> RowImages | None:
    """The embeddings of a config's images, opened; None where it reads text alone."""
    if config.images is None:
        return None
    store = EmbeddingStore(config.images.store)
    return RowImages(store=store, per_row=config.images.per_row)


def _shuffled(rows: int, seed: int, index: int) -> grain.MapDataset:
    """The row numbers of the source at `index`, in another order every epoch."""
    # `seed(s)` hashes s; `shuffle(seed=s)` would make epoch 1 of seed 0 epoch 0 of seed 1.
    mixed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
    return grain.MapDataset.range(rows).seed(mixed).shuffle().repeat()


def _teacher_of(source: TokenSource, teacher: TeacherStore | None) -> TaughtRows | None:
    if teacher is None or not source.taught:
        return None
    return teacher.rows_of(source.path, sidecar_sha256(source.path))
