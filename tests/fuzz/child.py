"""A process that reads damaged files: whatever kills it, its parent knows at which case.

Its answers are a byte a case in a file of each reader, and a line of JSON a finding.
"""

import faulthandler
import importlib
import os
import re
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.fuzz.case import BEGUN, FOUND, Finding, hurt, outcome
from tests.fuzz.reader import Files, Reader, files_of, put

MOST_MEMORY = 1 << 30  # bytes by which a reader may grow
_STATUS = Path("/proc/self/status")  # of Linux; elsewhere the peak is that of the whole process


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Cases [first, stop) of one reader."""

    reader: str
    first: int
    stop: int


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do, one task after the other."""

    module: str  # that has READERS
    tasks: tuple[Task, ...]
    seed: int
    seconds: float  # that a case may take
    folder: str  # for what it answers, and for the files that are read


class Answers:
    """Where a child says how a reader did."""

    def __init__(self, folder: str, reader: str) -> None:
        self.folder = Path(folder) / reader.replace(" ", "-")
        self.outcomes = self.folder / "outcomes"  # a byte a case
        self.findings = self.folder / "findings"  # a line of JSON each
        self.memory = self.folder / "memory"  # bytes by which the process grew at most
        self.files = self.folder / "files"  # those of the case that is read
        self.kept = self.folder / "kept"  # those of findings, by the number of the case


def main() -> None:
    work = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    faulthandler.enable()
    readers = importlib.import_module(work.module).READERS
    for task in work.tasks:
        _run(readers[task.reader], task, work)


def sample_of(reader: Reader) -> Files:
    """The whole files of a reader."""
    with tempfile.TemporaryDirectory() as folder:
        reader.make(Path(folder))
        sample = files_of(Path(folder))
    assert sample, f"{reader.name} has made no file"
    return sample


def _run(reader: Reader, task: Task, work: Work) -> None:
    _lift_limit()
    answers, sample = Answers(work.folder, reader.name), sample_of(reader)
    shutil.rmtree(answers.files, ignore_errors=True)
    answers.files.mkdir(parents=True)
    put(sample, answers.files, {})
    reader.read(answers.files)  # what is whole must be read; whatever that takes is loaded then
    begin, most, kinds = _start_measuring(), 0, set()
    outcomes = os.open(answers.outcomes, os.O_RDWR | os.O_CREAT)
    parent = os.getppid()
    for case in range(task.first, task.stop):
        if os.getppid() != parent:  # it was killed, and nobody waits for an answer
            sys.exit()
        os.pwrite(outcomes, bytes([BEGUN]), case)
        files = hurt(reader, sample, seed=work.seed, case=case)
        put(files, answers.files, sample)
        faulthandler.dump_traceback_later(work.seconds, exit=True)
        found = outcome(reader, answers.files, case)
        faulthandler.cancel_dump_traceback_later()
        if (grown := _memory("VmHWM") - begin) > most:
            most = grown
            answers.memory.write_text(str(grown))
        if grown > MOST_MEMORY and "memory" not in kinds:
            line = f"the process grew by {grown / 1e9:.1f} GB"
            found = Finding(reader=reader.name, case=case, line=line, kind="memory")
        if isinstance(found, Finding):
            _keep(found, answers, kinds)
            found = FOUND
        os.pwrite(outcomes, bytes([found]), case)
        put(sample, answers.files, files)
    os.close(outcomes)


def _keep(finding: Finding, answers: Answers, kinds: set[str]) -> None:
    """Tell of a finding; keep the files of the first of each kind."""
    with answers.findings.open("ab") as stream:
        stream.write(msgspec.json.encode(finding) + b"\n")
    if finding.kind not in kinds:
        kinds.add(finding.kind)
        shutil.copytree(answers.files, answers.kept / str(finding.case), dirs_exist_ok=True)


def _start_measuring() -> int:
    """From here on memory is limited, and its peak is that of what follows."""
    if not _STATUS.exists():
        return _memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MOST_MEMORY, hard))
    return _memory("VmRSS")


def _lift_limit() -> None:
    """Off with the limit of the reader before: the next one loads what it takes."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _memory(name: str) -> int:
    """Bytes of this process."""
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main()
