"""Rows side by side: the same batches for any reader, host and batch size."""

import dataclasses
import threading
import time

import jax
import numpy as np
import psutil
import pytest

from gemma_train.data.pipeline import batches, held_out_batches
from tests.data.conftest import assert_equal, take


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 4), (1, 0), (2, 2)])
def test_the_stream_is_the_same_for_any_workers_and_threads(config, workers, threads):
    other = dataclasses.replace(config, worker_processes=workers, read_threads=threads)
    found = take(other, 7, start_row=5)
    assert_equal(found, take(config, 7, start_row=5))
    assert type(found[0].tokens_bt) is np.ndarray  # and no view into a worker's memory


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


def test_hosts_share_a_held_out_batch(config):
    with held_out_batches(config, batch_rows=4) as stream:
        whole = next(stream)
    with held_out_batches(config, batch_rows=4, batch_indices=[1, 3]) as stream:
        part = next(stream)
    assert_equal([part], [jax.tree.map(lambda leaf: leaf[[1, 3]], whole)])


def test_the_last_held_out_batch_is_filled_with_rows_of_no_weight(config):
    with held_out_batches(config, batch_rows=1) as stream:
        rows = len(list(stream))
    with held_out_batches(config, batch_rows=rows + 3) as stream:
        (batch,) = stream
    assert batch.weights_bt[rows:].sum() == 0
    assert batch.segments_bt[rows:].sum() == 0
    assert (batch.weights_bt[:rows].sum(axis=1) > 0).all()


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
