"""The long-context stage by the command line: a finished run taken up at four times its length."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from gemma_train.commands import command_line
from gemma_train.conversion import open_weights
from tests.commands.processes import kill_at, saved_arrays, steps_of

STAGE = """
from gemma_train.config import load
from gemma_train.stages.long_context import long_context

config = long_context(
    load({run!r}), factor=4, tokens={steps} * 256, peak_lr=5e-4, warmup_steps=2, moments="kept",
    folder={folder!r},
)
"""


@pytest.fixture(scope="module")
def write_stage(finished_run):
    """Writes the config of a stage after the finished run, and returns its path."""

    def write(folder: Path, steps: int = 6) -> str:
        file = folder.with_suffix(".py")
        file.write_text(STAGE.format(run=finished_run[1], folder=str(folder), steps=steps))
        return str(file)

    return write


@pytest.fixture(scope="module")
def stage(tmp_path_factory, write_stage, gemma_train) -> Path:
    """The folder of a stage that nothing disturbed."""
    folder = tmp_path_factory.mktemp("stage") / "long"
    done = gemma_train("train", write_stage(folder))
    assert done.returncode == 0, done.stderr
    assert "6 steps of 256 tokens" in done.stdout
    return folder


def test_it_is_trained_on_from_the_weights_and_the_moments_of_its_run(stage, finished_run):
    """After six steps Adam has counted 18; the schedule, six."""
    arrays = saved_arrays(stage, 6)
    assert arrays["moments/1/0/count"] == 18
    assert arrays["moments/1/2/count"] == arrays["step"] == 6
    begun, *_ = steps_of(finished_run[0]).values()
    first, *_ = steps_of(stage).values()
    assert first["loss"] < begun["loss"] - 0.3
    assert first["tokens"] <= 256
    assert first["learning_rate"] == pytest.approx(5e-4 / 3)


def test_a_stage_killed_at_any_moment_resumes_bit_for_bit(
    stage, write_stage, gemma_train, tmp_path
):
    config = write_stage(tmp_path / "killed")
    code, _ = kill_at(config, tmp_path / "killed", 4, signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = gemma_train("train", config)
    assert done.returncode == 0, done.stderr
    killed, undisturbed = saved_arrays(tmp_path / "killed", 6), saved_arrays(stage, 6)
    assert killed.keys() == undisturbed.keys()
    for path, leaf in undisturbed.items():
        np.testing.assert_array_equal(killed[path], leaf, err_msg=path)


def test_the_factor_is_in_every_format_and_is_shown(stage, capsys, tmp_path):
    made = {"run": str(stage)}
    for format in ("hf", "gemma"):
        made[format] = str(tmp_path / format)
        assert command_line.run(["convert", str(stage), made[format], "--format", format]) == 0
    for folder in made.values():
        capsys.readouterr()
        assert command_line.run(["inspect", folder]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"global_rope_factor +4\.0\n", shown)
        assert re.search(r"context +256\n", shown)
        found = open_weights(folder).config
        assert (found.global_rope_factor, found.context) == (4.0, 256)


def test_a_longer_context_without_the_stage_is_refused(refused, finished_run, tmp_path, one_device):
    folder, config = finished_run
    longer = ("--model.context", "256", "--data.sequence-length", "256")
    begun = ("--folder", str(tmp_path / "new"), "--initial-weights", str(folder))
    told = refused("train", config, *longer, *begun)
    assert f"initial_weights: model.context is 256, but {str(folder)!r} was trained at 64" in told
    assert "by stages.long_context (docs/long_context.md)" in told
    assert not (tmp_path / "new" / "config.py").exists()
    told = refused("train", config, *begun, "--model.global-rope-factor", "4")
    assert "model.global_rope_factor is 4" in told and "stages.long_context" in told


def test_a_run_is_not_resumed_at_another_context(refused, finished_run, one_device):
    _, config = finished_run
    told = refused("train", config, "--model.context", "256", "--data.sequence-length", "256")
    assert "another config (model.context was 64, is 256; data.sequence_length was 64, is" in told
    told = refused("train", config, "--model.global-rope-factor", "4")
    assert "another config (model.global_rope_factor was 1.0, is 4.0)" in told


def test_moments_of_weights_that_have_none_are_refused(
    refused, stage, write_stage, tmp_path, one_device
):
    exported = str(tmp_path / "hf")
    assert command_line.run(["convert", str(stage), exported, "--format", "hf"]) == 0
    told = refused("train", write_stage(tmp_path / "new"), "--initial-weights", exported)
    assert f"initial_weights: {exported!r} is no run, and only a run's checkpoint has mom" in told
    assert not (tmp_path / "new" / "config.py").exists()
