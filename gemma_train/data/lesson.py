"""The rows of a run that a teacher speaks of, each once: what a store of its targets holds."""

from dataclasses import replace

import numpy as np

from gemma_train.data.config import DataConfig
from gemma_train.data.shards import sidecar_sha256
from gemma_train.data.streams import TrainingRows, training_rows
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import Lesson, Order, TaughtDataset, row_keys
from gemma_train.errors import require


def lesson(config: DataConfig, shard_rows: int = 1) -> Lesson:
    """What of a config's mixture is taught. Raises `UserError` where nothing is."""
    require(
        any(source.taught and source.weight for source in config.train),
        "no source of data.train is taught: leave taught=False away where a teacher is to speak",
    )
    datasets: dict[str, TaughtDataset] = {}
    places = []
    for source in config.train:
        if not (source.taught and source.weight):
            places.append(None)
            continue
        checksum = sidecar_sha256(source.path)
        datasets.setdefault(checksum, TaughtDataset(path=source.path, sha256=checksum))
        places.append(list(datasets).index(checksum))
    order = Order(
        shuffle_seed=config.shuffle_seed,
        weights=tuple(float(source.weight) for source in config.train),
        places=tuple(places),
        shard_rows=shard_rows,
    )
    return Lesson(datasets=tuple(datasets.values()), order=order)


def taught_rows(config: DataConfig, taught: Lesson, stream_rows: int) -> np.ndarray:
    """The rows that a run needs targets for if it takes so many of its stream.

    int64 [n, 2]: place in the lesson's datasets, row of it; in the order in which it meets them.
    """
    stream, found = training_rows(config), []
    for component, place in _components(config, taught):
        turns, numbers = stream.first_epoch(component, stream_rows)
        found.append(np.stack([turns, np.full_like(numbers, place), numbers], axis=1))
    rows = np.concatenate(found)
    rows = rows[np.argsort(rows[:, 0])][:, 1:]
    _, first = np.unique(row_keys(rows), return_index=True)
    return rows[np.sort(first)]


def missing_rows(config: DataConfig, store: TeacherStore, stream_rows: int) -> int:
    """How many of a run's rows lack the targets that they should have in the store.

    Raises `UserError` where the store was made from other datasets than the config's.
    """
    taught, there = lesson(config), store.description
    stream = training_rows(config, store)
    order = replace(taught.order, shard_rows=there.head.lesson.order.shard_rows)
    sums = [
        [one.sha256 for one in datasets]
        for datasets in (taught.datasets, there.head.lesson.datasets)
    ]
    if order == there.head.lesson.order and sums[0] == sums[1] and stream_rows <= there.stream_rows:
        return 0  # it was made for this stream
    return sum(_missing(stream, one, stream_rows) for one, _ in _components(config, taught))


def _missing(stream: TrainingRows, component: int, stream_rows: int) -> int:
    teacher = stream.components[component].teacher
    assert teacher is not None
    return teacher.store.missing(teacher.dataset, stream.distinct(component, stream_rows))


def _components(config: DataConfig, taught: Lesson) -> list[tuple[int, int]]:
    """(component of the stream, place of its dataset) of those that are taught."""
    used = [i for i, source in enumerate(config.train) if source.weight]
    places = [taught.order.places[i] for i in used]
    return [(component, place) for component, place in enumerate(places) if place is not None]
