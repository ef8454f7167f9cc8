"""Many cases of many readers, in a process of their own that is begun anew when one kills it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.fuzz.case import BEGUN, FOUND, REFUSED, TO_DO, WELL, Finding
from tests.fuzz.child import Answers, Task, Work

ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 0.2
SECONDS_A_CASE = 30.0  # of the clock: the machine may be busy
MOST_DEATHS = 100  # of one campaign: a reader that dies so often need not go on
# One thread each: less to share the machine with, and less address space.
_QUIET = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a reader did."""

    reader: str
    inputs: int
    well: int  # read, since the damage did not matter
    refused: int  # in one line
    findings: tuple[Finding, ...]
    memory: int  # bytes by which its process grew at most


def run(
    cases: Mapping[str, int],
    folder: Path,
    *,
    module: str = "tests.fuzz.readers",
    seed: int = 0,
    seconds: float = SECONDS_A_CASE,
    told: Callable[[str, int], object] = lambda reader, done: None,
) -> dict[str, Result]:
    """Read so many damaged inputs with every reader of these names.

    An empty folder gets the files of what is found. `told` is called with a reader and how many
    cases it has done. Raises `RuntimeError` where a child ends before its first case.
    """
    for name, count in cases.items():
        answers = Answers(str(folder), name)
        answers.folder.mkdir(parents=True)
        answers.outcomes.write_bytes(bytes([TO_DO]) * count)
    for _ in range(MOST_DEATHS):
        tasks = tuple(filter(None, (_left(folder, *one) for one in cases.items())))
        if not tasks:
            break
        work = Work(module=module, tasks=tasks, seed=seed, seconds=seconds, folder=str(folder))
        code = _child(work, folder / "errors", told)
        words = (folder / "errors").read_text(errors="replace")
        dead = [finding for task in tasks if (finding := _death(folder, task, code, words))]
        if code and not dead:
            raise RuntimeError(f"the child ended with {code}: {words[-2_000:]}")
    return {name: _result(folder, name) for name in cases}


def _left(folder: Path, name: str, cases: int) -> Task | None:
    """The cases of a reader that were not begun."""
    first = Answers(str(folder), name).outcomes.read_bytes().find(TO_DO)
    return None if first < 0 else Task(reader=name, first=first, stop=cases)


def _child(work: Work, errors: Path, told: Callable[[str, int], object]) -> int:
    """Let a child do its work; its exit code, negative that of a signal."""
    with errors.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            cwd=ROOT,
            env={**os.environ, **_QUIET},
        )
    assert child.stdin is not None
    with child.stdin as stdin:
        stdin.write(msgspec.json.encode(work))
    try:
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            for task in work.tasks:
                told(task.reader, _done(work.folder, task.reader))
    finally:
        child.kill()
    return child.wait()


def _done(folder: str, reader: str) -> int:
    outcomes = Answers(folder, reader).outcomes.read_bytes()
    return len(outcomes) - outcomes.count(TO_DO)


def _death(folder: Path, task: Task, code: int, words: str) -> Finding | None:
    """Write down the case that a child died of."""
    answers = Answers(str(folder), task.reader)
    case = answers.outcomes.read_bytes().find(BEGUN, task.first)
    if case < 0:
        return None
    how = f"it killed the process ({-code} is the signal)" if code < 0 else f"exit code {code}"
    if "Timeout (" in words:
        how = "it did not end"
    finding = Finding(reader=task.reader, case=case, line=how, told=words[-8_000:], kind=how)
    with answers.findings.open("ab") as stream:
        stream.write(msgspec.json.encode(finding) + b"\n")
    shutil.copytree(answers.files, answers.kept / str(case), dirs_exist_ok=True)
    outcomes = bytearray(answers.outcomes.read_bytes())
    outcomes[case] = FOUND
    answers.outcomes.write_bytes(outcomes)
    return finding


def _result(folder: Path, name: str) -> Result:
    answers = Answers(str(folder), name)
    outcomes = answers.outcomes.read_bytes()
    lines = answers.findings.read_bytes().splitlines() if answers.findings.exists() else []
    return Result(
        reader=name,
        inputs=len(outcomes) - outcomes.count(TO_DO),
        well=outcomes.count(WELL),
        refused=outcomes.count(REFUSED),
        findings=tuple(msgspec.json.decode(line, type=Finding) for line in lines),
        memory=int(answers.memory.read_text()) if answers.memory.exists() else 0,
    )
