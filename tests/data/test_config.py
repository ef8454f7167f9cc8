"""What may be read, and how: mistakes are named."""

import dataclasses

import pytest

from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.errors import UserError


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
        ({"damaged": "ignore"}, "data.damaged is 'ignore': choose 'refuse' or 'skip'"),
        ({"timeout_minutes": 0.0}, "data.timeout_minutes is 0.0: must be above 0"),
        ({"timeout_minutes": float("nan")}, "data.timeout_minutes is nan: must be above 0"),
    ],
)
def test_a_wrong_config_is_named(config, wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **wrong)


def test_a_negative_weight_is_named():
    with pytest.raises(UserError, match="weight of 'a' is -1.0: must be 0 or more"):
        TokenSource(path="a", weight=-1.0)


def test_the_config_can_be_read_back_from_its_repr(config):
    names = {"DataConfig": DataConfig, "TokenSource": TokenSource}
    assert eval(repr(config), names) == config
