"""A student of a store: its wrong inputs, each one line; killed and resumed bit for bit."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from gemma_train.commands import command_line
from tests.commands.conftest import SHARDS
from tests.commands.processes import kill_at, saved_arrays, steps_of
from tests.data.teacher_store.made import damage

BOTH = ("train", "teacher")


@pytest.fixture
def refusals(whole_store, tmp_path, refused, one_device):
    """Runs a verb on the store's config, or a copy of the store, and returns its one line."""

    def run(verb: str, *words: str, store: Path | None = None) -> str:
        more = {"train": (), "teacher": SHARDS, "verify": (*SHARDS, "--verify")}[verb]
        folder = ("--loss.teacher.folder", str(store or whole_store[0]))
        verb = "teacher" if verb == "verify" else verb
        out = ("--folder", str(tmp_path / "student"))
        told = refused(verb, whole_store[1], *more, *folder, *out, *words)
        assert not (tmp_path / "student").exists()
        return told

    return run


@pytest.mark.parametrize(
    ("words", "message", "verbs"),
    [
        ("--loss.seed 4", "loss.seed 0 there, 4 here", BOTH),
        ("--loss.temperature 2", "loss.temperature 1.0 there, 2.0 here", BOTH),
        ("--loss.temperature 0", "loss.temperature is 0.0: it must be above 0", BOTH),
        ("--data.sequence-length 32", "data.sequence_length 64 there, 32 here", BOTH),
        (
            "--data.sequence-length 128 --model.context 128",
            "data.sequence_length 64 there, 128 here",
            BOTH,
        ),
        (
            "--loss.sampler.candidates 17",
            r"loss.sampler '.*candidates=16,.*' there, '.*=17,.*' here",
            BOTH,
        ),
        ("--loss.sampler.recall 0.9", r"'.*recall=1.0\)' there, '.*recall=0.9\)' here", BOTH),
        ("--loss.teacher.dtype bfloat16", "dtype 'float32' there, 'bfloat16' here", BOTH),
        ("--data.shuffle-seed 3", "lacks .* gemma-train teacher with this config adds", ("train",)),
        (
            f"--loss.teacher.weights {Path(__file__)}",
            "loss.teacher.weights: '.*' is a file: name a Hugging Face folder",
            BOTH,
        ),
        (
            f"--loss.teacher.weights {Path(__file__).parent}",
            "loss.teacher.weights: '.*' holds no model: neither config.json",
            BOTH,
        ),
        (
            "--loss.teacher.weights nowhere",
            "loss.teacher.weights: model folder 'nowhere' does not exist",
            ("teacher",),
        ),
        (
            f"--loss.teacher.folder {Path(__file__)}",
            "teacher store '.*' is a file: name a folder as loss.teacher.folder",
            BOTH,
        ),
        (
            f"--loss.teacher.folder {Path(__file__).parent}",
            r"holds no finished teacher store \(no teacher.json\): run gemma-train teacher",
            ("train",),
        ),
    ],
)
def test_a_config_that_is_not_the_stores(refusals, words, message, verbs):
    for verb in verbs:
        assert re.search(message, refusals(verb, *words.split()))


EVERY = (*BOTH, "verify")


@pytest.mark.parametrize(
    ("name", "how", "message", "verbs"),
    [
        ("targets-00001.bin", "missing", "is missing: run gemma-train teacher again", ("train",)),
        ("targets-00001.bin", "cut", r"has [\d,]+ bytes, it should have [\d,]+: remove", EVERY),
        ("targets-00001.bin", "flipped", r"is damaged \(its SHA-256 is .*: remove", ("verify",)),
        ("targets-00001.rows", "missing", "is missing: restore it, or remove it and", EVERY),
        ("targets-00001.rows", "cut", r"is damaged \(its SHA-256 is .*: restore it, or", EVERY),
        ("teacher.json", "garbled", r"is garbled \(Input data .*: remove that", EVERY),
        ("teacher.json", "missing", r"no finished teacher store \(no teacher.json", ("train",)),
    ],
)
def test_a_store_that_is_damaged(refusals, whole_store, tmp_path, name, how, message, verbs):
    store = tmp_path / "damaged"
    shutil.copytree(whole_store[0], store)
    damage(store / name, how)
    for verb in verbs:
        told = refusals(verb, store=store)
        assert name in told
        assert re.search(message, told)


def test_a_sum_that_is_kept_garbled_is_taken_again(whole_store, tmp_path, capsys):
    store = tmp_path / "copy"
    shutil.copytree(whole_store[0], store)
    kept = store / ".teacher_sum"
    due = kept.read_bytes()
    kept.write_bytes(b"\xff\x00")
    words = ("--loss.teacher.folder", str(store))
    assert command_line.run(["teacher", whole_store[1], *SHARDS, *words]) == 0
    assert "is complete" in capsys.readouterr().out
    assert kept.read_bytes() == due


def test_a_student_killed_and_then_stopped_by_damage_ends_bit_for_bit(
    tmp_path, write_distilled, whole_store, gemma_train
):
    """A flipped bit is found when its row is read, in the last step; the shard is mended."""
    store = tmp_path / "store"
    shutil.copytree(whole_store[0], store)
    shard = store / "targets-00011.bin"
    content = shard.read_bytes()
    damage(shard, "flipped")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = gemma_train("train", write_distilled("whole", store=whole_store[0]))
    assert done.returncode == 0, done.stderr
    config = write_distilled("killed", store=store)
    code, _ = kill_at(config, killed, 4, signal.SIGKILL)
    assert code == -signal.SIGKILL
    stopped = gemma_train("train", config)
    assert stopped.returncode == 2
    assert re.fullmatch(
        rf"gemma-train: shard '{shard}' is damaged: row \d+ of dataset '.*' cannot be read \(.*\): "
        "remove that file and run gemma-train teacher again; or train without its rows: "
        r"data\.damaged='skip'\n",
        stopped.stderr,
    )
    assert 9 <= max(steps_of(killed)) < 12
    shard.unlink()
    mended = gemma_train("teacher", config, *SHARDS)
    assert "4 rows to write" in mended.stdout
    assert shard.read_bytes() == content
    again = gemma_train("train", config)
    assert again.returncode == 0, again.stderr
    assert "going on from step 9" in again.stdout
    expected = {number: line["loss"] for number, line in steps_of(whole).items()}
    assert {number: line["loss"] for number, line in steps_of(killed).items()} == expected
    one, other = saved_arrays(whole, 12), saved_arrays(killed, 12)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)
