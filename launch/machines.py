"""A run on machines that are reached by ssh: worker.sh does the work there.

The same for TPU VMs and instance groups, which differ in how a machine is made, asked and reached.
Files go to the home folder: the machines belong to this run alone.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gemma_train.errors import require
from launch.commands import Answer, Command, Shell
from launch.fleet import Machines, Process, Sighting
from launch.job import Launch

WORKER = Path("launch/worker.sh")


class Lender(Protocol):
    """Who makes machines, and how they are reached."""

    def create(self) -> None: ...
    def delete(self) -> None: ...
    def state(self) -> tuple[Machines, str]: ...
    def copy(self, files: tuple[str, ...]) -> None: ...
    def on_all(self, line: str) -> None: ...
    def on_first(self, line: str) -> Command: ...


@dataclass(frozen=True, kw_only=True)
class OverSsh:
    """A fleet of such machines."""

    launch: Launch
    shell: Shell
    lender: Lender
    secrets: tuple[str, ...]

    def create(self) -> None:
        self.lender.create()

    def delete(self) -> None:
        self.lender.delete()

    def setup(self) -> None:
        """The revision's source and the environment to all machines, and there a venv."""
        files = Path("build/launch") / self.launch.name
        source, variables = files / "source.tar.gz", files / "worker.env"
        if not self.shell.dry_run:
            files.mkdir(parents=True, exist_ok=True)
        archive = ("git", "archive", "--format=tar.gz", f"--output={source}")
        self.shell.run(Command(words=(*archive, self.launch.revision)))
        missing = [name for name in self.secrets if name not in os.environ]
        require(
            self.shell.dry_run or not missing,
            f"provider.secrets names {', '.join(missing)}, not set in the environment: export it",
        )
        known = self.launch.environment()
        hidden = {name: os.environ.get(name, "") for name in self.secrets}
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in (known | hidden).items()]
        told = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in known.items()), *self.secrets])
        self.shell.write_private(variables, "".join(lines), told)
        try:
            self.lender.copy((str(WORKER), str(source), str(variables)))
        finally:
            if not self.shell.dry_run:
                variables.unlink()
        self.lender.on_all(worker("setup"))

    def run(self) -> None:
        backup = f"{self.launch.folder}/logs"
        self.lender.on_all(worker("start", backup, *self.launch.train_words))

    def stop(self) -> None:
        self.lender.on_all(worker("stop"))

    def logs(self) -> None:
        self.shell.follow(self.lender.on_first(worker("logs")))

    def look(self) -> Sighting:
        """The first host stands for all: jax ends every process when one of them dies."""
        machines, told = self.lender.state()
        if machines is not Machines.READY and not self.shell.dry_run:
            return Sighting(machines=machines, told=told)
        process, code = process_told(self.shell.read(self.lender.on_first(worker("status"))))
        return Sighting(machines=machines, told=told, process=process, exit_code=code)


def worker(*words: str) -> str:
    """The line that runs worker.sh in a machine's shell."""
    return shlex.join(("bash", WORKER.name, *words))


def process_told(answer: Answer) -> tuple[Process, int | None]:
    """What `worker.sh status` said, among the words of ssh; the exit code of what has ended."""
    said = re.findall(r"^(absent|ready|running|stopped|exit \d+)\r?$", answer.out, re.MULTILINE)
    if answer.code and "No such file" in answer.error + answer.out:  # no worker.sh yet
        return Process.ABSENT, None
    if answer.code or not said:
        return Process.UNREACHABLE, None
    match said[-1].split():
        case ["exit", code]:
            return Process.ENDED, int(code)
        case [word]:
            return Process[word.upper()], None
    raise AssertionError(said)
