import dataclasses
import threading
import time

import jax
import numpy as np
import psutil
import pytest

from gemma_train.data.example import Batch
from gemma_train.data.pipeline import (
    DataConfig,
    TokenSource,
    batches,
    held_out_batches,
    unigram_entropy,
)
from gemma_train.errors import UserError


@pytest.fixture
def config(write_dataset, made_documents, tokenizer, tmp_path) -> DataConfig:
    one = write_dataset(tmp_path / "one", made_documents(1, count=200), shard_tokens=900)
    two = write_dataset(tmp_path / "two", made_documents(2, count=90))
    held_out = write_dataset(tmp_path / "held_out", made_documents(3, count=40))
    return DataConfig(
        tokenizer=tokenizer.name,
        train=(TokenSource(path=one, weight=3), TokenSource(path=two, weight=1)),
        held_out=(held_out, two),
        sequence_length=16,
        batch_rows=6,
        read_threads=0,
        prefetch_batches=2,
    )


def take(config: DataConfig, count: int, start_row: int = 0, batch_indices=None) -> list[Batch]:
    indices = range(config.batch_rows) if batch_indices is None else batch_indices
    with batches(config, start_row=start_row, batch_indices=indices) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 4), (1, 0), (2, 2)])
def test_the_stream_is_the_same_for_any_workers_and_threads(config, workers, threads):
    other = dataclasses.replace(config, worker_processes=workers, read_threads=threads)
    found = take(other, 7, start_row=5)
    assert_equal(found, take(config, 7, start_row=5))
    assert type(found[0].tokens_bt) is np.ndarray  # and no view into a worker's memory


def test_the_stream_resumes_at_any_row(config):
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *take(config, 40))
    for start in (1, 6, 17, 100):
        first = jax.tree.map(lambda leaf, start=start: leaf[start : start + 6], rows)
        assert_equal(take(config, 1, start_row=start), [first])


def test_another_batch_size_goes_on_in_the_same_stream(config):
    larger = dataclasses.replace(config, batch_rows=12)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *take(config, 2, start_row=18))
    assert_equal(take(larger, 1, start_row=18), [whole])


def test_hosts_with_disjoint_rows_make_up_the_single_hosts_batch(config):
    parts = take(config, 3, batch_indices=[0, 1, 4]), take(config, 3, batch_indices=[2, 3, 5])
    order = np.argsort([0, 1, 4, 2, 3, 5])
    together = [
        jax.tree.map(lambda a, b: np.concatenate([a, b])[order], *pair)
        for pair in zip(*parts, strict=True)
    ]
    assert_equal(together, take(config, 3))


def test_an_epoch_has_every_row_once_and_the_next_another_order(config):
    config = dataclasses.replace(config, train=config.train[1:], batch_rows=1)
    rows = -(-(sum(map(len, documents_of(config.train[0].path))) - 1) // 16)
    keys = [batch.tokens_bt.tobytes() for batch in take(config, 2 * rows)]
    assert sorted(keys[:rows]) == sorted(keys[rows:])
    assert keys[:rows] != keys[rows:]
    assert len(set(keys)) == rows


def documents_of(folder: str) -> list[np.ndarray]:
    tokens = np.fromfile(f"{folder}/tokens-00000.bin", "<u4")
    return np.split(tokens, np.fromfile(f"{folder}/tokens-00000.offsets", "<i8")[1:])


def test_seeds_change_the_order_and_adjacent_ones_share_no_epoch(config):
    config = dataclasses.replace(config, train=config.train[1:], batch_rows=1)
    other = dataclasses.replace(config, shuffle_seed=1)
    rows = -(-(sum(map(len, documents_of(config.train[0].path))) - 1) // 16)
    second_epoch = [batch.tokens_bt.tobytes() for batch in take(config, 2 * rows)][rows:]
    assert second_epoch != [batch.tokens_bt.tobytes() for batch in take(other, rows)]


def test_a_component_of_weight_zero_is_left_out_and_changes_nothing(config):
    extra = dataclasses.replace(
        config, train=(*config.train, TokenSource(path="nowhere", weight=0))
    )
    assert_equal(take(extra, 3), take(config, 3))


def test_held_out_batches_cover_every_target_once_in_order(config):
    with held_out_batches(config, batch_rows=4) as stream:
        found = list(stream)
    assert {batch.tokens_bt.shape for batch in found} == {(4, 16)}
    targets = np.concatenate([batch.targets_bt[batch.weights_bt > 0] for batch in found])
    expected = [each[1:] for folder in config.held_out for each in documents_of(folder)]
    assert targets.tolist() == np.concatenate(expected).tolist()


def test_the_last_held_out_batch_is_filled_with_rows_of_no_weight(config):
    with held_out_batches(config, batch_rows=1) as stream:
        rows = len(list(stream))
    with held_out_batches(config, batch_rows=rows + 3) as stream:
        (batch,) = stream
    assert batch.weights_bt[rows:].sum() == 0
    assert batch.segments_bt[rows:].sum() == 0
    assert (batch.weights_bt[:rows].sum(axis=1) > 0).all()


def test_a_limited_evaluation_is_spread_over_all_datasets(config):
    with held_out_batches(config, batch_rows=1) as stream:
        every = [batch.tokens_bt.tobytes() for batch in stream]
    with held_out_batches(config, batch_rows=1, maximum_rows=5) as stream:
        some = [every.index(batch.tokens_bt.tobytes()) for batch in stream]
    assert some == [index * len(every) // 5 for index in range(5)]


def test_hosts_share_a_held_out_batch(config):
    with held_out_batches(config, batch_rows=4) as stream:
        whole = next(stream)
    with held_out_batches(config, batch_rows=4, batch_indices=[1, 3]) as stream:
        part = next(stream)
    assert_equal([part], [jax.tree.map(lambda leaf: leaf[[1, 3]], whole)])


def test_unigram_entropy_is_that_of_the_held_out_targets(config):
    targets = [each[1:] for folder in config.held_out for each in documents_of(folder)]
    shares = np.unique(np.concatenate(targets), return_counts=True)[1] / len(
        np.concatenate(targets)
    )
    assert unigram_entropy(config) == pytest.approx(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (2, 1)])
def test_closing_leaves_no_thread_and_no_process(config, workers, threads):
    config = dataclasses.replace(config, worker_processes=workers, read_threads=threads)
    before = set(threading.enumerate()), set(psutil.Process().children(recursive=True))
    stream = batches(config, start_row=0, batch_indices=[0])
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    for _ in range(100):
        children = set(psutil.Process().children(recursive=True)) - before[1]
        left = [child for child in children if "resource_tracker" not in "".join(child.cmdline())]
        left += [
            thread
            for thread in set(threading.enumerate()) - before[0]
            if "grain" in thread.name or "Queue" in thread.name
        ]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(left)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": ()}, r"data.train is \(\): give a tuple with a TokenSource"),
        ({"train": (TokenSource(path="a", weight=0),)}, "of weight above 0"),
        ({"held_out": "data/x"}, "data.held_out is 'data/x': give a tuple of folders"),
        ({"sequence_length": 0}, "data.sequence_length is 0: must be at least 1"),
        ({"batch_rows": 0}, "data.batch_rows is 0"),
        ({"prefetch_batches": 0}, "data.prefetch_batches is 0"),
        ({"shuffle_seed": -1}, "data.shuffle_seed is -1: must be 0 or more"),
        ({"read_threads": -1}, "data.read_threads is -1"),
        ({"worker_processes": -1}, "data.worker_processes is -1"),
    ],
)
def test_a_wrong_config_is_named(config, wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **wrong)


def test_a_negative_weight_is_named():
    with pytest.raises(UserError, match="weight of 'a' is -1.0: must be 0 or more"):
        TokenSource(path="a", weight=-1.0)


def test_opening_refuses_what_does_not_fit(config, tmp_path):
    (tmp_path / "other.model").write_bytes(b"another")
    wrong = {
        "tokenizer 'none.model' does not exist": {"tokenizer": "none.model"},
        "was made with tokenizer": {"tokenizer": str(tmp_path / "other.model")},
        "'nowhere' holds no finished dataset": {"train": (TokenSource(path="nowhere"),)},
    }
    for message, change in wrong.items():
        with pytest.raises(UserError, match=message):
            batches(dataclasses.replace(config, **change), start_row=0, batch_indices=[0])
    with pytest.raises(UserError, match="data.held_out is empty"):
        held_out_batches(dataclasses.replace(config, held_out=()), batch_rows=1)
    with pytest.raises(UserError, match="start_row is -1"):
        batches(config, start_row=-1, batch_indices=[0])


def test_the_config_can_be_read_back_from_its_repr(config):
    assert eval(repr(config)) == config
