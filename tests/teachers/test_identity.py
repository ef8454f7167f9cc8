"""Who teaches is told from files' names, sizes and ends."""

import json
import os
from dataclasses import replace

import pytest

from gemma_train.config import Distillation, Online, load
from gemma_train.conversion.tensors import Weights
from gemma_train.errors import UserError
from gemma_train.run_files import TEACHER
from gemma_train.teachers.identity import ENDS, check_teacher, identity, keep_teacher, model_files


@pytest.fixture
def taught(tmp_path):
    """A run with a teacher in its step, and that teacher's weights: files of no meaning."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3 * ENDS))
    run = load("configs/quickstart.py")
    loss = Distillation(teacher=Online(weights=str(folder)))
    weights = Weights(source=str(folder), format="hf", config=run.model, tensors={})
    return replace(run, loss=loss, folder=str(tmp_path)), weights


@pytest.mark.parametrize("place", [0, 3 * ENDS - 1, None], ids=["start", "end", "length"])
def test_a_teacher_of_other_bytes_is_another(taught, tmp_path, place):
    config, weights = taught
    before, file = identity(config, weights), tmp_path / "teacher/model.safetensors"
    os.utime(file)
    (tmp_path / "teacher/README.md").write_text("no part of it")
    assert identity(config, weights) == before
    content = bytearray(file.read_bytes())
    if place is None:
        content += b"x"
    else:
        content[place] = 1
    file.write_bytes(content)
    assert identity(config, weights).sha256 != before.sha256


@pytest.mark.parametrize("format", ["gemma", "run"])
def test_all_files_of_a_checkpoint_are_looked_at(taught, tmp_path, format):
    config, weights = taught
    step = 3 if format == "run" else None
    place = tmp_path / "teacher" / ("checkpoints/3" if step else "")
    (place / "state/d").mkdir(parents=True)
    (place / "state/d/one").write_bytes(b"a")
    weights = replace(weights, format=format, step=step)
    before = identity(config, weights)
    assert "state/d/one" in model_files(weights)
    (place / "state/d/one").write_bytes(b"b")
    assert identity(config, weights).sha256 != before.sha256


def test_it_is_kept_when_a_run_begins_and_compared_when_it_goes_on(taught, tmp_path):
    config, weights = taught
    check_teacher(config, weights)
    keep_teacher(config, weights, begun=True)  # of a run that kept none: now it does
    kept = json.loads((tmp_path / TEACHER).read_text())
    assert kept["folder"] == str(tmp_path / "teacher")
    check_teacher(config, weights)
    (tmp_path / "teacher/config.json").write_text("{ }")
    with pytest.raises(
        UserError, match=r"another teacher \(sha256 was '.*', is '.*'\): bring that"
    ):
        check_teacher(config, weights)
    keep_teacher(config, weights, begun=True)
    assert json.loads((tmp_path / TEACHER).read_text()) == kept
    keep_teacher(config, weights, begun=False)
    assert json.loads((tmp_path / TEACHER).read_text())["sha256"] != kept["sha256"]
    (tmp_path / TEACHER).write_text("[]")
    with pytest.raises(UserError, match="garbled"):
        check_teacher(config, weights)
