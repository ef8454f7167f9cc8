"""A run on machines that are reached by ssh: worker.sh does the work there.

The same for TPU VMs and instance groups, which differ in how a machine is made, asked and reached.
Files go to the home folder: the machines belong to this run alone.
"""

import os
import re
import shlex
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from gemma_train.errors import require
from launch.commands import Answer, Command, Shell
from launch.fleet import Fleet, Process
from launch.providers import ManagedInstanceGroup, TpuVm

WORKER = Path("launch/worker.sh")
NO_SCRIPT = 127  # bash's code where the script is not there


@dataclass(frozen=True, kw_only=True)
class OverSsh(Fleet):
    """A fleet of such machines."""

    provider: TpuVm | ManagedInstanceGroup

    @abstractmethod
    def copy(self, *files: str) -> None:
        """Copy files to the home folder of every host."""

    @abstractmethod
    def on_all(self, line: str) -> None:
        """Run a line of shell on every host."""

    @abstractmethod
    def on_first(self, line: str) -> Command:
        """The command that runs a line of shell on the first host."""

    def check_source(self) -> None:
        """Ask git for the revision, and for the config in it: in a dry run too, it only reads."""
        revision, config = self.launch.revision, self.launch.config
        answer = Shell().read(Command(words=("git", "cat-file", "-e", f"{revision}:{config}")))
        reason = answer.reason.removeprefix("fatal: ").removesuffix(".")
        require(
            answer.code == 0,
            f"revision is {revision!r}: git says {reason}: launch from a checkout, with a "
            f"revision that holds {config}",
        )

    def setup(self) -> None:
        """The revision's source and the environment to all machines, and there a venv."""
        files = Path("build/launch") / self.launch.name
        source, variables = files / "source.tar.gz", files / "worker.env"
        if not self.shell.dry_run:
            self._check_secrets()
            files.mkdir(parents=True, exist_ok=True)
        archive = ("git", "archive", "--format=tar.gz", f"--output={source}")
        self.shell.run(Command(words=(*archive, self.launch.revision)))
        known, secrets = self.launch.environment(), self.provider.secrets
        told = " ".join([*_assigned(known), *secrets])
        lines = _assigned(known | {name: os.environ.get(name, "") for name in secrets})
        with self.shell.private_file(variables, "\n".join(lines) + "\n", told):
            self.copy(str(WORKER), str(source), str(variables))
        self.on_all(_worker("setup"))

    def _check_secrets(self) -> None:
        missing = [name for name in self.provider.secrets if name not in os.environ]
        require(
            not missing,
            f"provider.secrets names {', '.join(missing)}, not set in the environment: export it",
        )

    def run(self) -> None:
        self.on_all(_worker("start", f"{self.launch.folder}/logs", *self.launch.train_words))

    def stop(self) -> None:
        self.on_all(_worker("stop"))

    def save(self) -> None:
        self.on_all(_worker("save"))

    def logs(self) -> int:
        return self.shell.follow(self.on_first(_worker("logs")))

    def process(self) -> tuple[Process, int | None]:
        """The first host stands for all: jax ends every process when one of them dies."""
        return process_told(self.shell.read(self.on_first(_worker("status"))))


def process_told(answer: Answer) -> tuple[Process, int | None]:
    """What `worker.sh status` said, among the words of ssh; the exit code of what has ended."""
    said = re.findall(r"^(absent|ready|running|stopped|exit \d+)\r?$", answer.out, re.MULTILINE)
    lacking = f"{WORKER.name}: No such file" in answer.error + answer.out
    if answer.code == NO_SCRIPT and lacking:  # 255 is ssh's own, whatever file it misses
        return Process.ABSENT, None
    if answer.code or not said:
        return Process.UNREACHABLE, None
    word, _, code = said[-1].partition(" ")
    return (Process.ENDED, int(code)) if code else (Process[word.upper()], None)


def _worker(*words: str) -> str:
    """The line that runs worker.sh in a machine's shell."""
    return shlex.join(("bash", WORKER.name, *words))


def _assigned(variables: dict[str, str]) -> list[str]:
    return [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
