"""A run that is taught: told, killed and resumed bit for bit, refused in a line, planned."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from gemma_train.commands import command_line
from gemma_train.run_files import TOKENIZER
from tests.commands.processes import kill_at, saved_arrays, steps_of

TAUGHT = """
from dataclasses import replace

config = replace(
    config,
    loss=Distillation(
        teacher=Online(weights={teacher!r}, dtype="float32"),
        sampler=Priority(candidates=16),
        chunk=64,
    ),
)
"""


@pytest.fixture
def taught_config(write_config, finished_run):
    """Writes the config of a small run in `folder` that a finished run teaches."""

    def write(folder: Path, teacher: str | None = None) -> str:
        file = Path(write_config(folder))
        teacher = teacher or str(finished_run[0])
        file.write_text(file.read_text() + TAUGHT.format(teacher=teacher))
        return str(file)

    return write


def test_a_taught_run_killed_at_any_moment_resumes_bit_for_bit(
    tmp_path, taught_config, gemma_train, finished_run
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = gemma_train("train", taught_config(whole))
    assert done.returncode == 0, done.stderr
    assert f"parameters of {finished_run[0]} after 12 steps, float32, split" in done.stdout
    config = taught_config(killed)
    code, _ = kill_at(config, killed, 5, signal.SIGKILL)
    assert code == -signal.SIGKILL
    again = gemma_train("train", config)
    assert again.returncode == 0, again.stderr
    for name in ("loss", "gradient_norm", "cross_entropy"):
        expected = {number: line[name] for number, line in steps_of(whole).items()}
        assert {number: line[name] for number, line in steps_of(killed).items()} == expected
    one, other = saved_arrays(whole, 12), saved_arrays(killed, 12)
    assert one.keys() == other.keys() == saved_arrays(finished_run[0], 12).keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)


def test_a_teacher_that_trained_on_is_refused_and_its_old_step_resumes_bit_for_bit(
    tmp_path, taught_config, gemma_train, finished_run
):
    teacher, later = tmp_path / "teacher", tmp_path / "later"
    shutil.copytree(finished_run[0], teacher)
    older, newest = sorted(int(path.name) for path in (teacher / "checkpoints").iterdir())[-2:]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pinned = ("--loss.teacher.step", str(older))
    done = gemma_train("train", taught_config(whole, str(teacher)), *pinned)
    assert done.returncode == 0, done.stderr
    assert f"after {older} steps" in done.stdout
    shutil.move(teacher / f"checkpoints/{newest}", later)
    config = taught_config(killed, str(teacher))
    kill_at(config, killed, 10, signal.SIGKILL)  # by then something is saved
    shutil.move(later, teacher / f"checkpoints/{newest}")
    recorded = (killed / "config.py").read_bytes()
    refused = gemma_train("train", config)
    assert (killed / "config.py").read_bytes() == recorded
    assert refused.returncode == 2
    assert f"another teacher (step was {older}, is {newest}; sha256 was '" in refused.stderr
    assert f"set loss.teacher.step to {older}" in refused.stderr
    again = gemma_train("train", config, *pinned)
    assert again.returncode == 0, again.stderr
    expected = {number: line["loss"] for number, line in steps_of(whole).items()}
    assert {number: line["loss"] for number, line in steps_of(killed).items()} == expected
    one, other = saved_arrays(whole, 12), saved_arrays(killed, 12)
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)
    accepted = ("--accepted-changes", "loss.teacher", "steps", "--steps", "13")
    other = gemma_train("train", config, *accepted)
    assert other.returncode == 0, other.stderr
    assert json.loads((killed / "teacher.json").read_text())["step"] == newest


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path, taught_config, refused
):
    config = taught_config(tmp_path / "run", teacher="no/where")
    assert "'no/where' does not exist" in refused("train", config)
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_another_tokenizer_is_refused(
    tmp_path, taught_config, finished_run, corpus, refused
):
    teacher = tmp_path / "teacher"
    shutil.copytree(finished_run[0], teacher)
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        (Path(corpus) / "tokenizer.model").read_bytes()
    )
    proto.pieces[-1].piece += "x"
    (teacher / TOKENIZER).write_bytes(proto.SerializeToString())
    told = refused("train", taught_config(tmp_path / "run", teacher=str(teacher)))
    assert str(teacher / TOKENIZER) in told
    assert f"{corpus}/tokenizer.model" in told
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_teacher(tmp_path, taught_config, capsys):
    config = taught_config(tmp_path / "run")
    words = ("plan", config, "--topology", "v5e:2x2", "--mesh.data", "4", "--no-compile")
    assert command_line.run([*words, "--compute.dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  teacher ") and "in the step" in line for line in lines)
    assert any(line.split()[:1] == ["teacher"] and "kB" in line for line in lines)
    assert any("of the teacher, forward" in line for line in lines)
