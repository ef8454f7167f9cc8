"""The teacher's pass in processes of its own: killed, shared, repeated, refused."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from gemma_train import storage
from gemma_train.commands.teacher import TeacherArguments
from gemma_train.commands.teacher import run as run_teacher
from gemma_train.config import RunConfig, TokenSource, load
from gemma_train.conversion.load import open_weights
from gemma_train.data.pipeline import batches
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import read_description
from gemma_train.errors import UserError
from gemma_train.losses.distillation import Stored, taught
from gemma_train.placement import place
from gemma_train.samplers import Counts, Dense, Gumbel, Priority, TopK
from gemma_train.teachers.online import load_teacher
from gemma_train.teachers.stored import SUM, open_store, store_codec, with_teacher_online
from gemma_train.teachers.writing import check_disk, plan_store, share_of, write_share
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer
from tests.commands.conftest import SHARDS, command, environment
from tests.commands.processes import steps_of


def assert_same_files(one: Path, other: Path) -> None:
    names, others = (
        sorted(path.name for path in store.iterdir() if path.name != SUM) for store in (one, other)
    )
    assert names == others
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# The command, which kills itself where it would write the file that the first argument names.
KILLED = """
import os, runpy, signal, sys
from gemma_train import storage

write_whole, name = storage.write_whole, sys.argv.pop(1)

def write_or_die(target, content):
    if target.name == name:
        (target.parent / f".{target.name}.0.writing").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write_whole(target, content)

storage.write_whole = write_or_die
runpy.run_module("gemma_train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("dies_at", "finished"),
    [
        ("targets-00000.bin", 0),
        ("targets-00004.rows", 4),
        ("targets-00007.json", 7),
        ("teacher.json", 12),
    ],
)
def test_a_pass_killed_at_any_moment_resumes_byte_for_byte(
    tmp_path, write_distilled, whole_store, gemma_train, dies_at, finished
):
    store = tmp_path / "killed"
    config = write_distilled(store=store)
    words = [sys.executable, "-c", KILLED, dies_at, "teacher", config, *SHARDS]
    killed = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = {path: path.stat().st_mtime_ns for path in store.glob("targets-*.json")}
    assert len(kept) == finished
    assert not (store / "teacher.json").exists()
    for leftover in store.glob(".*.writing"):
        os.utime(leftover, (0, 0))  # hours later
    again = gemma_train("teacher", config, *SHARDS)
    assert again.returncode == 0, again.stderr
    assert (f"{4 * (12 - finished)} rows to write" in again.stdout) == (finished < 12)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert_same_files(store, whole_store[0])


def test_writers_of_one_folder_make_what_one_would(
    tmp_path, write_distilled, whole_store, gemma_train
):
    store = tmp_path / "shared"
    config = write_distilled(store=store)
    processes = [
        subprocess.Popen(
            command("teacher", config, *SHARDS, "--writer", str(number), "--writers", "2"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert_same_files(store, whole_store[0])


def test_one_writer_of_two_leaves_a_store_that_is_not_finished(
    tmp_path, write_distilled, whole_store, gemma_train
):
    store = tmp_path / "half"
    config = write_distilled(store=store)
    done = gemma_train("teacher", config, *SHARDS, "--writer", "1", "--writers", "2")
    assert done.returncode == 0, done.stderr
    assert "6 of 12 shards are there" in done.stdout
    refused = gemma_train("train", config)
    assert refused.returncode == 2
    assert "holds no finished teacher store (no teacher.json)" in refused.stderr
    assert not (tmp_path / "student" / "config.py").exists()
    # Another number of writers takes over what is left.
    done = gemma_train("teacher", config, *SHARDS)
    assert "24 rows to write" in done.stdout
    assert_same_files(store, whole_store[0])


def test_a_complete_store_is_left_as_it_is(whole_store, gemma_train):
    store, config = whole_store
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    again = gemma_train("teacher", config, *SHARDS, "--verify")
    assert again.returncode == 0, again.stderr
    assert "is complete; to write it anew, remove the folder. It holds 48 rows" in again.stdout
    assert "checksums: all equal" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_a_dry_run_writes_nothing(tmp_path, write_distilled, gemma_train):
    store = tmp_path / "dry"
    done = gemma_train("teacher", write_distilled(store=store), *SHARDS, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "48 rows to write, 3.07k tokens" in done.stdout
    assert not store.exists()


def test_a_mesh_gives_the_same_candidates(tmp_path, write_distilled, whole_store, gemma_train):
    store = tmp_path / "meshed"
    config = write_distilled(store=store)
    mesh = ("--mesh.data", "2", "--mesh.seq", "2")
    done = gemma_train("teacher", config, *SHARDS, *mesh, devices=4)
    assert done.returncode == 0, done.stderr
    run = load(config)
    streams = [
        batches(
            run.data,
            start_row=0,
            batch_indices=range(4),
            teacher=TeacherStore(str(folder), store_codec(run)),
        )
        for folder in (store, whole_store[0])
    ]
    for _ in range(12):
        one, other = (next(stream) for stream in streams)
        same = (one.candidates_btq == other.candidates_btq).all(axis=-1)
        assert same.mean() > 0.98  # the 16th and the 17th may be as likely
        np.testing.assert_allclose(
            one.probabilities_btq[same], other.probabilities_btq[same], atol=0.02
        )
    for stream in streams:
        stream.close()


def test_two_processes_write_one_store(tmp_path, write_distilled, whole_store):
    store = tmp_path / "joined"
    config = write_distilled(store=store)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    words = ("--mesh.data", "2", "--mesh.runtime", "many_processes")
    processes = [
        subprocess.Popen(
            command("teacher", config, *SHARDS, *words),
            env={**environment(1), **joined, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert ["one host encodes for all of a mesh" in text for text in told] == [True, False]
    there, expected = read_description(str(store)), read_description(str(whole_store[0]))
    assert there.head == expected.head
    assert there.total("tokens") == expected.total("tokens")


def test_a_student_of_too_few_rows_is_told_how_many_and_what_adds_them(
    tmp_path, whole_store, gemma_train
):
    store, config = whole_store
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    words = ("--loss.teacher.folder", str(copy), "--folder", str(tmp_path / "student"))
    refused = gemma_train("train", config, *words, "--steps", "14")
    assert refused.returncode == 2
    assert "lacks 8 of the rows that 14 steps need: gemma-train teacher" in refused.stderr
    assert not (tmp_path / "student" / "config.py").exists()
    added = gemma_train("teacher", config, *words, *SHARDS, "--steps", "14")
    assert added.returncode == 0, added.stderr
    assert "8 rows to write" in added.stdout
    assert read_description(str(copy)).total("rows") == 56


def test_another_teacher_is_refused_and_an_absent_one_believed(
    tmp_path, write_distilled, whole_store, finished_run, gemma_train
):
    store, _ = whole_store
    run, _ = finished_run
    other = tmp_path / "other"
    shutil.copytree(run, other)
    newest = max((other / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    refused = gemma_train("train", write_distilled(store=store, weights=other))
    assert refused.returncode == 2
    assert "teacher's parameters (SHA-256)" in refused.stderr
    away = write_distilled(store=store, weights=tmp_path / "away")
    believed = gemma_train("train", away, "--steps", "2")
    assert believed.returncode == 0, believed.stderr
    assert "which is not here to compare: the store is believed" in believed.stdout
    refused = gemma_train("teacher", away, *SHARDS)
    assert refused.returncode == 2
    assert "away' does not exist" in refused.stderr


def stored_config(whole_store, **changes) -> RunConfig:
    """The config of the store's student, with fields of its loss changed."""
    config = load(whole_store[1])
    return replace(config, loss=replace(config.loss, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "loss.seed 0 there, 4 here"),
        ({"temperature": 2.0}, "loss.temperature 1.0 there, 2.0 here"),
        ({"sampler": TopK(candidates=17)}, r"loss.sampler .*candidates=16.* there, .*=17.* here"),
        ({"sampler": Counts(candidates=16)}, "loss.sampler 'TopK.* there, 'Counts.* here"),
        ({"sampler": Dense()}, r"loss.sampler is Dense\(\): all of the vocabulary is too much"),
    ],
)
def test_a_store_is_opened_for_its_own_loss_alone(whole_store, changes, message):
    with pytest.raises(UserError, match=message):
        open_store(stored_config(whole_store, **changes), print)


def test_a_store_is_opened_for_its_own_data_and_tokenizer_alone(whole_store, tmp_path):
    config = stored_config(whole_store)
    shorter = replace(config, data=replace(config.data, sequence_length=32))
    with pytest.raises(UserError, match="data.sequence_length 64 there, 32 here"):
        open_store(shorter, print)
    other = epath.Path(tmp_path / "other.model")
    texts = [Path(__file__).read_text(), Path(storage.__file__).read_text()]
    train_tokenizer(texts, TokenizerConfig(path=str(other), vocabulary=600), other)
    renamed = replace(config, data=replace(config.data, tokenizer=str(other)))
    with pytest.raises(UserError, match="was made with the tokenizer"):
        open_store(renamed, print)
    away = replace(config.loss, teacher=replace(config.loss.teacher, weights="away"))
    with pytest.raises(UserError, match=r"\(tokenizer '\w+' there, '\w+' here"):
        open_store(replace(renamed, loss=away), print)
    held_out = TokenSource(path=config.data.held_out[0])
    elsewhere = replace(config, data=replace(config.data, train=(held_out,)))
    with pytest.raises(UserError, match=r"was made from '.*train'.*, not from '.*held_out'"):
        open_store(elsewhere, print)
    assert open_store(replace(config, steps=1), print) is not None


def test_a_disk_without_room_is_refused_naming_both(whole_store, monkeypatch):
    config = stored_config(whole_store, teacher=Stored(folder="nowhere", weights="teacher"))
    weights = open_weights(stored_config(whole_store).loss.teacher.weights)
    share = share_of(plan_store(config, weights, shard_tokens=256), writer=0, writers=1)
    assert share.rows == share.left == 48
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1234)
    with pytest.raises(
        UserError, match=r"'nowhere' needs about [\d,]+ bytes and its disk has 1,234"
    ):
        check_disk(share, store_codec(config), print)


def test_a_store_in_a_bucket_is_refused_before_the_pass(whole_store):
    bucket = Stored(folder="gs://x/y", weights="nowhere")
    with pytest.raises(UserError, match="teacher store 'gs://x/y' must be local"):
        run_teacher(stored_config(whole_store, teacher=bucket), TeacherArguments())


def test_a_dataset_that_is_not_the_plans_is_refused_when_it_is_opened(
    whole_store, tmp_path, mesh_of
):
    config = stored_config(whole_store)
    teacher = replace(config.loss.teacher, folder=str(tmp_path / "store"))
    config = replace(config, loss=replace(config.loss, teacher=teacher))
    weights = open_weights(teacher.weights)
    plan = plan_store(config, weights, shard_tokens=256)
    changed = tuple(replace(dataset, sha256="0" * 64) for dataset in plan.head.lesson.datasets)
    lesson = replace(plan.head.lesson, datasets=changed)
    plan = replace(plan, head=replace(plan.head, lesson=lesson))
    message = (
        r"is not the one of teacher store .*dataset.json \w{12}\.\.\., due is 000000000000\.\.\."
    )
    with mesh_of(), pytest.raises(UserError, match=message):
        share = share_of(plan, writer=0, writers=1)
        write_share(config, weights, share, jax.sharding.get_mesh(), lambda text: None)


@pytest.mark.parametrize(
    "sampler", [TopK(candidates=64), Gumbel(candidates=64), Priority(candidates=64)], ids=str
)
def test_what_is_stored_is_what_the_teacher_would_say_in_the_step(
    whole_store, tmp_path, sampler, mesh_of
):
    """The stored targets' divergence from the online ones, in nats; other weights have more."""
    config = stored_config(whole_store, sampler=sampler)
    teacher = replace(config.loss.teacher, folder=str(tmp_path / "store"))
    config = replace(config, loss=replace(config.loss, teacher=teacher), steps=2)
    weights = open_weights(teacher.weights)
    plan = plan_store(config, weights, shard_tokens=256)
    with mesh_of():
        mesh = jax.sharding.get_mesh()
        share = share_of(plan, writer=0, writers=1)
        write_share(config, weights, share, mesh, lambda text: None)
        plan.conclude(plan.finished())
        store = open_store(config, lambda text: None)
        model = load_teacher(with_teacher_online(config), weights)
        with batches(config.data, start_row=0, batch_indices=range(4), teacher=store) as stream:
            stored_batch = next(stream)
        silent = replace(stored_batch, candidates_btq=None, probabilities_btq=None)
        online = jax.jit(taught, static_argnums=2)(model, place(silent, mesh, 4), config.loss)
    counts = stored_batch.weights_bt > 0
    ids, weights, online_ids, online_weights = (
        np.asarray(array)[counts]
        for b in (stored_batch, online)
        for array in (b.candidates_btq, b.probabilities_btq)
    )
    expected = dense(online_ids, online_weights)
    most = 1e-3 if isinstance(sampler, Priority) else 6e-4
    assert 0 <= divergence(dense(ids, weights), expected) < most
    assert divergence(dense(ids, weights[:, ::-1]), expected) > 6e-3  # weights that are wrong


def divergence(stored_nv: np.ndarray, online_nv: np.ndarray) -> float:
    """Kullback and Leibler's, a token in the mean, of targets whose sums may not be 1."""
    some = stored_nv > 0
    assert (some == (online_nv > 0)).all()
    ratio = np.log(stored_nv[some] / online_nv[some])
    return ((stored_nv[some] * ratio).sum() - (stored_nv - online_nv).sum()) / len(stored_nv)


def dense(ids_nq: np.ndarray, weights_nq: np.ndarray) -> np.ndarray:
    """Targets as vectors over the vocabulary of 600."""
    found = np.zeros((len(ids_nq), 600))
    for row, ids, weights in zip(found, ids_nq, weights_nq, strict=True):
        np.add.at(row, ids, weights)
    return found


@pytest.mark.parametrize("sampler", ["TopK(candidates=64)", "Priority(candidates=64)"])
def test_a_stored_teacher_gives_the_loss_curve_of_one_in_the_step(
    tmp_path, write_distilled, gemma_train, sampler
):
    """Same sampler, same seed: what differs is how weights are stored, under 2e-3 nats a step."""
    stored = write_distilled("stored", store=tmp_path / "store", sampler=sampler)
    online = tmp_path / "online.py"
    text = Path(stored).read_text().replace("student", "online").replace("Stored(", "Online(")
    text = re.sub(r"folder='[^']*store', ", "", text).replace("/stored'", "/online'")
    online.write_text(text.replace("Stored,", "Online,"))
    for words in (("teacher", stored), ("train", stored), ("train", str(online))):
        done = gemma_train(*words)
        assert done.returncode == 0, done.stderr
    one, other = (steps_of(tmp_path / name) for name in ("stored", "online"))
    assert one.keys() == other.keys() == set(range(1, 13))
    gaps = [one[step]["loss"] - other[step]["loss"] for step in one]
    assert max(map(abs, gaps)) < 2e-3


def test_what_is_no_distilled_run_is_refused(finished_run, gemma_train):
    _, config = finished_run
    refused = gemma_train("teacher", config)
    assert refused.returncode == 2
    assert "loss is NextToken without a store: set loss=Distillation(" in refused.stderr


def test_a_store_and_a_run_are_not_put_into_one_folder(
    tmp_path, whole_store, finished_run, write_distilled, gemma_train
):
    store = shutil.copytree(whole_store[0], tmp_path / "store")
    before = (store / "teacher.json").read_bytes()
    refused = gemma_train("train", finished_run[1], "--folder", str(store))
    assert refused.returncode == 2
    assert "holds a teacher's targets (teacher.json without config.py)" in refused.stderr
    assert (store / "teacher.json").read_bytes() == before
    for verb in ("teacher", "train"):
        refused = gemma_train(verb, write_distilled(store=finished_run[0]))
        assert refused.returncode == 2
        assert "is the folder of a run (config.py is in it)" in refused.stderr


def test_wrong_arguments_are_named(whole_store, gemma_train):
    for message, words in {
        "writer is 2: must be 0 to 1, for writers is 2": ("--writer", "2", "--writers", "2"),
        "shard_tokens is 0: must be at least 1": ("--shard-tokens", "0"),
    }.items():
        refused = gemma_train("teacher", whole_store[1], *words)
        assert refused.returncode == 2
        assert message in refused.stderr
