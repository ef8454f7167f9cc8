"""A process that ends the same way at every start: truly started, by a launcher of this machine."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import NoReturn

import pytest

from gemma_train.definition import load_definition
from gemma_train.errors import UserError
from launch.babysitter import Babysitter
from launch.commands import Shell
from launch.fleet import Fleet, Machines, Process
from launch.job import Launch, Patience
from tests.launch.conftest import ROOT

MOST = 4  # attempts without progress


@dataclass(frozen=True, kw_only=True)
class ThisMachine(Fleet):
    """Machines that are always there; `run` runs a command here, to its end."""

    words: tuple[str, ...]
    codes: list[int] = field(default_factory=list)  # of the processes that have ended

    def run(self) -> None:
        done = subprocess.run([sys.executable, *self.words], cwd=ROOT, capture_output=True)
        self.codes.append(done.returncode)

    def machines(self) -> tuple[Machines, str]:
        return Machines.READY, "here"

    def process(self) -> tuple[Process, int | None]:
        return (Process.ENDED, self.codes[-1]) if self.codes else (Process.READY, None)

    def setup(self) -> None: ...

    def _never(self) -> NoReturn:
        raise AssertionError("nothing asks for this")

    check_source = create = stop = save = delete = logs = _never


@pytest.fixture
def sit(cloud):
    """Sits with a command: (exit code or last words, exit codes of its processes, waits)."""

    def run(*words: str):
        launch = load_definition("launch/gemma3_1b.py", "launch", Launch)
        patience = Patience(attempts_without_progress=MOST, poll_seconds=1, backoff_seconds=2)
        launch = replace(launch, folder="gs://my-bucket/gemma", patience=patience)
        slept, shell = [], Shell(say=lambda text: None)
        fleet = ThisMachine(launch=launch, shell=shell, words=words)
        sitter = Babysitter(
            launch=launch,
            fleet=fleet,
            shell=shell,
            sleep=slept.append,
            clock=lambda: 0.0,
            chance=lambda: 1.0,
        )
        try:
            end = sitter.sit()
        except UserError as error:
            end = str(error)
        return end, fleet.codes, [seconds for seconds in slept if seconds != 1]

    return run


def test_a_crash_that_comes_back_at_every_start_is_given_up_after_ever_longer_waits(sit):
    end, codes, waits = sit("-c", "raise RuntimeError('the same at every start')")
    assert f"ended with exit code 1; given up after {MOST} attempts" in end
    assert codes == [1] * (1 + MOST)
    assert waits == [2, 4, 8, 16]


def test_gemma_train_s_word_for_a_mistake_is_final_at_the_first_start(sit):
    assert sit("-m", "gemma_train", "train", "nowhere.py") == (2, [2], [])
