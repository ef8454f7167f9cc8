"""The record of scalars: one step late, whole after a kill, safe as JSON."""

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import pytest
from etils import epath

from gemma_train.errors import UserError
from gemma_train.metrics.recorder import Recorder, read
from gemma_train.run_files import METRICS, TENSORBOARD

LINE = '{"step": 1, "time": 1800000000.5, "kind": "train"}'


class DeviceArray:
    """A scalar on a pretended device: notes when its transfer starts and when it is read."""

    def __init__(self, value, journal):
        self.value, self.journal = value, journal

    def copy_to_host_async(self):
        self.journal.append(("sent", self.value))

    def __float__(self):
        self.journal.append(("read", self.value))
        return self.value


def write_steps(folder, steps, start_step=0):
    with Recorder(folder, start_step, tensorboard=False) as recorder:
        for step in steps:
            recorder.record(step, {"loss": float(step)})


def test_values_are_read_exactly_one_step_late(tmp_path):
    journal = []
    recorder = Recorder(tmp_path, 0, tensorboard=False)
    assert recorder.record(1, {"loss": DeviceArray(1.0, journal)}) == {}
    assert journal == [("sent", 1.0)]
    written = recorder.record(2, {"loss": DeviceArray(2.0, journal)})
    assert journal == [("sent", 1.0), ("sent", 2.0), ("read", 1.0)]
    assert (written["step"], written["loss"], written["kind"]) == (1, 1.0, "train")
    assert [line["step"] for line in read(tmp_path)] == [1]


def test_flush_writes_what_is_pending_once(tmp_path):
    recorder = Recorder(tmp_path, 0, tensorboard=False)
    recorder.record(1, {"loss": jnp.asarray(2.5)})
    assert recorder.flush()["loss"] == 2.5
    assert recorder.flush() == {}
    assert recorder.record(1, {"loss": 2.25}, kind="evaluation") == {}
    recorder.close()
    assert [(line["kind"], line["loss"]) for line in read(tmp_path)] == [
        ("train", 2.5),
        ("evaluation", 2.25),
    ]


def test_a_line_is_a_flat_object_with_step_time_and_kind(tmp_path):
    with Recorder(tmp_path, 0, tensorboard=False) as recorder:
        recorder.record(7, {"tokens": 1024, "event": "resumed"}, kind="event")
    (line,) = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert line.pop("time") > 1.7e9
    assert line == {"step": 7, "kind": "event", "tokens": 1024, "event": "resumed"}


def test_values_that_are_not_finite_survive_as_strict_json(tmp_path):
    with Recorder(tmp_path, 0, tensorboard=False) as recorder:
        recorder.record(1, {"a": math.nan, "b": math.inf, "c": jnp.asarray(-math.inf)})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    raw = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert (raw["a"], raw["b"], raw["c"]) == ("nan", "inf", "-inf")
    (line,) = read(tmp_path)
    assert math.isnan(line["a"]) and (line["b"], line["c"]) == (math.inf, -math.inf)


def test_resume_cuts_the_steps_of_the_life_that_was_killed(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 7), start_step=4)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_begins_again_at_step_zero_begins_an_empty_file(tmp_path):
    write_steps(tmp_path, range(3))
    write_steps(tmp_path, range(2))
    assert [line["step"] for line in read(tmp_path)] == [0, 1]


def test_resume_mends_a_half_written_last_line(tmp_path):
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 4, "ti')
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    write_steps(tmp_path, [4], start_step=3)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4]


def test_going_back_drops_later_steps_and_goes_on_from_there(tmp_path):
    with Recorder(tmp_path, 0, tensorboard=True) as recorder:
        for step in (1, 2, 3, 4):
            recorder.record(step, {"loss": 1.0})
        recorder.go_back(2)
        recorder.record(3, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(1, 1), (2, 1), (3, 9)]
    purged = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert purged == [3]


def test_a_last_line_that_lost_only_its_line_end_is_kept(tmp_path):
    (tmp_path / METRICS).write_text(f"{LINE}\n{LINE}")
    assert [line["step"] for line in read(tmp_path)] == [1, 1]


@pytest.mark.parametrize("garbage", ["{", "[1]", '{"loss": 1}', "", "\0\0"])
def test_garbage_in_the_middle_is_named_by_file_and_line(tmp_path, garbage):
    (tmp_path / METRICS).write_text(f"{LINE}\n{garbage}\n{LINE}\n")
    with pytest.raises(UserError, match=f"{METRICS} line 2 is not a record"):
        read(tmp_path)


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no metrics.jsonl"):
        read(tmp_path)


def test_a_kill_loses_no_line_that_was_written(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from gemma_train.metrics.recorder import Recorder\n"
        "recorder = Recorder(sys.argv[1], 0, tensorboard=False)\n"
        "for step in range(1, 6): recorder.record(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4]


def events(folder):
    """What TensorBoard is told, from the oldest file on."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((folder / TENSORBOARD).iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:  # TFRecord: length in 8 bytes, its checksum in 4, the record, its checksum in 4
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_gets_the_numbers_and_hides_the_steps_that_were_cut(tmp_path):
    with Recorder(tmp_path, 4, tensorboard=True) as recorder:
        recorder.record(5, {"loss": 1.5, "note": "text"})
        recorder.record(5, {"loss": 1.25}, kind="evaluation")
    told = events(tmp_path)
    values = [(v.tag, v.simple_value, e.step) for e in told for v in e.summary.value]
    assert values == [("train/loss", 1.5, 5), ("evaluation/loss", 1.25, 5)]
    assert [e.step for e in told if e.HasField("session_log")] == [5]


def test_an_object_store_gets_the_whole_text_again(tmp_path, monkeypatch):
    from gemma_train.metrics import recorder

    writes = []
    monkeypatch.setattr(recorder.storage, "write_whole", lambda file, text: writes.append(text))
    file = recorder._open(epath.Path("gs://bucket/run/metrics.jsonl"), "a\n")
    file.write("b\n")
    assert writes == ["a\n"]
    file.close()
    assert writes == ["a\n", "a\nb\n"]
