"""A run that learns from a store, before there is one."""

from dataclasses import replace

import jax
import pytest

from gemma_train.config import Online, load
from gemma_train.planning.compiled import lower_step
from gemma_train.teachers.stored import open_store, stored_candidates, with_teacher_online


@pytest.fixture(scope="module")
def config():
    return load("configs/distilled_quickstart.py")


def test_a_step_is_lowered_for_batches_that_bring_their_candidates(config, mesh_of):
    assert stored_candidates(config) == 64
    with mesh_of():
        text = lower_step(config, jax.sharding.get_mesh()).as_text()
    assert "tensor<4x256x64xi32>" in text and "tensor<4x256x64xf32>" in text


def test_a_store_stands_for_its_teacher_in_the_step(config):
    online = with_teacher_online(config)
    assert online.loss == replace(
        config.loss, teacher=Online(weights="runs/quickstart", dtype="float32")
    )
    assert stored_candidates(online) == 0
    assert open_store(online, print) is None
