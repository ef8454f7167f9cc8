"""A run that learns from a store, before there is one; the sum over who taught, kept in it."""

import os
from dataclasses import replace

import jax
import pytest

from gemma_train.config import Online, load
from gemma_train.conversion.tensors import Weights
from gemma_train.planning.compiled import lower_step
from gemma_train.teachers import stored
from gemma_train.teachers.stored import (
    SUM,
    batch_layout,
    open_store,
    teachers_sha256,
    with_teacher_online,
)


@pytest.fixture(scope="module")
def config():
    return load("configs/distilled_quickstart.py")


def test_a_step_is_lowered_for_batches_that_bring_their_candidates(config, mesh_of):
    assert batch_layout(config).candidates == 64
    with mesh_of():
        text = lower_step(config, jax.sharding.get_mesh()).as_text()
    assert "tensor<4x256x64xi32>" in text and "tensor<4x256x64xf32>" in text


def test_a_store_stands_for_its_teacher_in_the_step(config):
    online = with_teacher_online(config)
    assert online.loss == replace(
        config.loss, teacher=Online(weights="runs/quickstart", dtype="float32")
    )
    assert batch_layout(online).candidates == 0
    assert open_store(online, print) is None


@pytest.fixture
def summed(config, tmp_path, monkeypatch):
    """A config whose teacher is files of no meaning, and the sums that were taken of them."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for name in ("config.json", "model.safetensors"):
        (teacher / name).write_text(name)
        os.utime(teacher / name, (1e9, 1e9))
    there = replace(config.loss.teacher, weights=str(teacher), folder=str(tmp_path / "store"))
    weights = Weights(source=str(teacher), format="hf", config=config.model, tensors={})
    taken = []

    def take(weights: Weights, advance) -> str:
        taken.append("sum")
        return f"{len(taken)}" * 64

    monkeypatch.setattr(stored, "open_teacher", lambda config: weights)
    monkeypatch.setattr(stored, "parameters_sha256", take)
    return replace(config, loss=replace(config.loss, teacher=there)), taken


def touch(file):
    os.utime(file, (2e9, 2e9))


def lengthen(file):
    file.write_text(file.read_text() + " ")
    os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize(
    ("name", "change", "again"),
    [
        ("teacher/model.safetensors", lambda file: None, False),
        ("teacher/README.md", lambda file: file.write_text("no part of it"), False),
        ("teacher/model.safetensors", touch, True),
        ("teacher/config.json", lengthen, True),
        ("teacher/model.safetensors", lambda file: file.rename(f"{file}.safetensors"), True),
        ("teacher/more.safetensors", lambda file: file.write_text("another file"), True),
        (f"store/{SUM}", lambda file: file.write_text(file.read_text()[:-70]), True),
        (f"store/{SUM}", lambda file: file.write_bytes(b"\xff"), True),
        (f"store/{SUM}", lambda file: file.unlink(), True),
    ],
)
def test_a_teachers_sum_is_taken_again_where_a_name_size_or_time_changed(
    summed, tmp_path, name, change, again
):
    config, taken = summed
    assert [teachers_sha256(config, print) for _ in range(2)] == ["1" * 64] * 2
    assert len(taken) == 1
    change(tmp_path / name)
    due = "2" * 64 if again else "1" * 64
    assert [teachers_sha256(config, print) for _ in range(2)] == [due] * 2
    assert len(taken) == 1 + again


def test_a_store_that_cannot_be_written_to_keeps_no_sum(summed, tmp_path):
    config, _ = summed
    (tmp_path / "store").write_text("in the way")
    assert [teachers_sha256(config, print) for _ in range(2)] == ["1" * 64, "2" * 64]


def test_a_sum_is_not_taken_where_there_is_nothing_to_compare(summed, tmp_path):
    config, taken = summed
    assert teachers_sha256(config, print, compares=True) is None
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    assert teachers_sha256(config, print, compares=True) == "1" * 64
    away = replace(config.loss, teacher=replace(config.loss.teacher, weights="away"))
    assert teachers_sha256(replace(config, loss=away), print) is None
    assert len(taken) == 1


def test_a_process_that_does_not_lead_takes_no_sum(summed, monkeypatch):
    config, taken = summed
    monkeypatch.setattr(stored, "of_leader", lambda find: "a" * 64)
    assert teachers_sha256(config, print) == "a" * 64
    assert not taken


def test_a_large_teacher_is_read_with_a_word(summed, monkeypatch):
    config, _ = summed
    monkeypatch.setattr(stored, "SILENT_BYTES", -1)
    said = []
    teachers_sha256(config, said.append)
    teachers_sha256(config, said.append)
    assert said == [f"reading 0 B of {config.loss.teacher.weights}, to tell it from other teachers"]
