"""Which row stands at which place: of the training stream, and of the held-out text."""

import dataclasses

import jax
import numpy as np

from gemma_train.data.config import TokenSource
from gemma_train.data.pipeline import held_out_batches
from tests.data.conftest import assert_equal, documents_of, take


def test_the_stream_resumes_at_any_row(config):
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *take(config, 40))
    for start in (1, 6, 17, 100):
        first = jax.tree.map(lambda leaf, start=start: leaf[start : start + 6], rows)
        assert_equal(take(config, 1, start_row=start), [first])


def test_an_epoch_has_every_row_once_and_the_next_another_order(config):
    config = dataclasses.replace(config, train=config.train[1:], batch_rows=1)
    rows = -(-(sum(map(len, documents_of(config.train[0].path))) - 1) // 16)
    keys = [batch.tokens_bt.tobytes() for batch in take(config, 2 * rows)]
    assert sorted(keys[:rows]) == sorted(keys[rows:])
    assert keys[:rows] != keys[rows:]
    assert len(set(keys)) == rows


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


def test_a_limited_evaluation_is_spread_over_all_datasets(config):
    with held_out_batches(config, batch_rows=1) as stream:
        every = [batch.tokens_bt.tobytes() for batch in stream]
    with held_out_batches(config, batch_rows=1, maximum_rows=5) as stream:
        some = [every.index(batch.tokens_bt.tobytes()) for batch in stream]
    assert some == [index * len(every) // 5 for index in range(5)]
