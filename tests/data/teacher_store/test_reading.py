"""Targets read at random, each beside its own row."""

import dataclasses
import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gemma_train import storage
from gemma_train.data.lesson import lesson, missing_rows, taught_rows
from gemma_train.data.pipeline import listed_batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset
from gemma_train.data.streams import training_rows
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import UserError
from tests.data.teacher_store.made import (
    CODEC,
    LENGTH,
    made_targets,
    planned,
    take,
    write,
)


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 3), (2, 1)])
def test_batches_bring_their_rows_own_targets(config, tmp_path, workers, threads):
    write(planned(config, tmp_path / "store", 60), config)
    config = dataclasses.replace(config, worker_processes=workers, read_threads=threads)
    for plain, full in zip(take(config, 10), take(config, 10, tmp_path / "store"), strict=True):
        np.testing.assert_array_equal(full.tokens_bt, plain.tokens_bt)
        for index in range(6):
            row, expected = full.row(index), made_targets(plain.row(index))
            taught = expected.weights > 0
            found = np.take_along_axis(
                row.probabilities, np.argsort(-row.probabilities, axis=1, kind="stable"), axis=1
            )
            assert not row.probabilities[~taught].any()
            np.testing.assert_allclose(found[taught], expected.probabilities[taught], rtol=0.05)
            order = np.sort(expected.candidates, axis=1)
            np.testing.assert_array_equal(row.candidates[taught], order[taught])


def test_hosts_read_the_targets_of_their_own_rows(config, tmp_path):
    write(planned(config, tmp_path / "store", 60), config)
    whole = take(config, 2, tmp_path / "store")
    part = take(config, 2, tmp_path / "store", indices=[1, 4])
    for one, all_ in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one.probabilities_btq, all_.probabilities_btq[[1, 4]])
        np.testing.assert_array_equal(one.candidates_btq, all_.candidates_btq[[1, 4]])


def test_a_lesson_is_the_streams_rows_each_once_in_the_order_of_their_first_appearance(config):
    found = lesson(config)
    everything = taught_rows(config, found, 10_000)
    lengths = [len(Rows(TokenDataset(source.path), LENGTH)) for source in config.train]
    assert len(everything) == sum(lengths)
    assert len({tuple(row) for row in everything.tolist()}) == len(everything)
    rows = taught_rows(config, found, 30)
    np.testing.assert_array_equal(rows, everything[: len(rows)])
    paths = [dataset.path for dataset in found.datasets]
    listed = listed_batches(config, paths, rows, batch_rows=6, batch_indices=range(6))
    for one, other in zip(listed, take(config, 5), strict=True):
        np.testing.assert_array_equal(one.tokens_bt, other.tokens_bt)


def test_the_last_listed_batch_is_filled_with_rows_of_no_weight(config):
    paths = [source.path for source in config.train]
    rows = np.array([[0, 3], [1, 2], [0, 1]])
    with listed_batches(config, paths, rows, batch_rows=2, batch_indices=range(2)) as stream:
        first, second = stream
    assert first.weights_bt.sum(axis=1).all()
    assert second.weights_bt[0].any() and not second.weights_bt[1].any()


def test_a_dataset_that_is_listed_twice_is_taught_once(config, tmp_path):
    twice = dataclasses.replace(config, train=(*config.train, config.train[1]))
    plan = planned(twice, tmp_path / "store", 10_000)
    assert len(plan.head.lesson.datasets) == 2
    rows = [tuple(row) for part in plan.shards.values() for row in part.tolist()]
    assert len(set(rows)) == len(rows)
    write(plan, twice)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    assert missing_rows(twice, store, 10_000) == 0
    assert missing_rows(config, store, 10_000) == 0


def test_a_source_that_is_not_taught_has_no_targets_and_takes_no_room(config, tmp_path):
    sources = config.train[0], dataclasses.replace(config.train[1], taught=False)
    config = dataclasses.replace(config, train=sources)
    plan = planned(config, tmp_path / "store", 60)
    assert [dataset.path for dataset in plan.head.lesson.datasets] == [sources[0].path]
    write(plan, config)
    batch = take(config, 1, tmp_path / "store")[0]
    silent = ~batch.probabilities_btq.any(axis=(1, 2))
    assert 1 <= silent.sum() <= 2
    none = tuple(dataclasses.replace(source, taught=False) for source in sources)
    with pytest.raises(UserError, match="no source of data.train is taught"):
        lesson(dataclasses.replace(config, train=none))


def test_a_dataset_that_was_moved_is_read_where_the_config_says(config, tmp_path):
    write(planned(config, tmp_path / "store", 25), config)
    moved = tmp_path / "elsewhere"
    Path(config.train[0].path).rename(moved)
    sources = dataclasses.replace(config.train[0], path=str(moved)), config.train[1]
    config = dataclasses.replace(config, train=sources)
    plan = planned(config, tmp_path / "store", 60)
    assert [dataset.path for dataset in plan.head.lesson.datasets] == [s.path for s in sources]
    write(plan, config)
    assert missing_rows(config, TeacherStore(str(tmp_path / "store"), CODEC), 60) == 0


def test_rows_of_another_order_are_missed_whole_epochs_or_parts(config):
    stream = training_rows(config)
    for rows in (7, 60, 10_000):
        for component in (0, 1):
            found = stream.distinct(component, rows)
            _, expected = stream.first_epoch(component, rows)
            assert sorted(found.tolist()) == sorted(expected.tolist())


def open_files() -> int:
    """Descriptors of this process on targets, without those that earlier tests have forgotten."""
    gc.collect()
    names = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(name.endswith(".bin") and "targets-" in name for name in names)


def test_a_store_keeps_few_files_open_and_can_be_sent_to_another_process(
    config, tmp_path, monkeypatch
):
    write(planned(config, tmp_path / "store", 60, shard_rows=4), config)
    monkeypatch.setattr(storage, "_MOST_OPEN", 3)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    rows = taught_rows(config, lesson(config), 60).tolist()
    before = open_files()
    first = [store.read(*row).tokens for row in rows]
    assert open_files() == before + 3
    sent = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as threads:
        again = [found.tokens for found in threads.map(sent.read, *zip(*rows * 3, strict=True))]
    np.testing.assert_array_equal(np.stack(again), np.stack(first * 3))
    assert open_files() == before + 6
    del store, sent
    gc.collect()
    assert open_files() == before
