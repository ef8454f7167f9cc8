"""A process that hangs ends with Stalled's code and says where it hung; one that lives does not."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma_train.errors import Stalled, UserError
from gemma_train.training.watchdog import PATIENT, Watchdog

ROOT = Path(__file__).parents[2]
SECONDS = 0.5
HEAD = f"""
import ctypes, re, sys, threading, time
from gemma_train.training.watchdog import Watchdog

def sleeps_for_ever(): time.sleep(60)

def watched(seconds={SECONDS}): return Watchdog(seconds / 60, sys.argv[1], process=3)
"""
GIL_HELD = "ctypes.PyDLL(None).sleep(60)"  # PyDLL keeps the GIL, as native code may
REGULAR = "re.match('(a+)+$', 'a' * 40 + 'b')"  # never lets go of the GIL, for years


def run(folder: Path, body: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HEAD + body, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_a_main_thread_that_hangs_ends_with_its_stack_on_screen_and_in_the_folder(tmp_path):
    folder = tmp_path / "run"
    done = run(folder, "with watched() as dog: dog.alive('step 7'); sleeps_for_ever()")
    assert done.returncode == Stalled.exit_code == 5
    kept = (folder / "stacks-3.txt").read_text()
    for told in (done.stderr, kept):
        assert "process 3: nothing heard for" in told and "since step 7" in told
        assert "in sleeps_for_ever" in told and "Current thread" in told


@pytest.mark.parametrize("hog", [GIL_HELD, REGULAR], ids=["native code", "a regular expression"])
def test_a_thread_that_never_lets_go_of_the_gil_ends_all_the_same(tmp_path, hog):
    body = f"def hogs(): {hog}\nwith watched() as dog: dog.alive(); hogs()"
    done = run(tmp_path, body)
    assert done.returncode == 1, "faulthandler ends it, from C"
    assert "in hogs" in done.stderr


def test_a_process_that_says_it_lives_is_left_alone(tmp_path):
    body = (
        "with watched() as dog:\n"
        "  for step in range(30): time.sleep(0.05); dog.alive(f'step {step}')\n"
        "time.sleep(1.5)\n"  # and nothing comes later
        "print('done')"
    )
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_first_step_and_what_is_patient_may_take_longer(tmp_path):
    body = (
        f"with watched() as dog:\n  time.sleep({3 * SECONDS})\n  dog.alive()\n"
        f"  with dog.patient(): time.sleep({3 * SECONDS})\n"
        "  print('done', flush=True)\n  sleeps_for_ever()"
    )
    began = time.monotonic()
    done = run(tmp_path, body)
    assert PATIENT > 3
    assert (done.returncode, done.stdout) == (Stalled.exit_code, "done\n")
    assert "nothing heard for" in done.stderr and time.monotonic() - began < 30
    assert run(tmp_path, "with watched() as dog: sleeps_for_ever()").returncode == 5


def test_a_watchdog_that_fails_lets_the_run_go_on(tmp_path):
    body = (
        "dog = watched()\n"
        "with dog:\n"
        "  dog.alive()\n"
        "  dog._left = lambda: 1 / 0\n"
        f"  time.sleep({12 * SECONDS})\n"
        "print('done')"
    )
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="CLOCK_MONOTONIC of Linux")
def test_a_process_that_was_stopped_for_too_long_ends_when_it_goes_on(tmp_path):
    """As the one host that froze while the others gave up: what it would do is in vain."""
    body = "with watched() as dog:\n  dog.alive(); print('on', flush=True); sleeps_for_ever()"
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + body, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3 * SECONDS)
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=20) == Stalled.exit_code


def test_no_minutes_watch_nothing(tmp_path):
    body = "with watched(0) as dog: print(threading.active_count())"
    assert run(tmp_path, body).stdout == "1\n"


def test_it_may_be_entered_where_an_error_ends_it(tmp_path):
    body = "with watched() as dog: dog.alive(); raise ValueError('own error')"
    done = run(tmp_path, body)
    assert done.returncode == 1 and "ValueError: own error" in done.stderr


def test_minutes_below_zero_are_refused(tmp_path):
    with pytest.raises(UserError, match="watchdog minutes are -1"):
        Watchdog(-1, str(tmp_path))
