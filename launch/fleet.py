"""What every provider offers, and what is seen of it: the one seam of launch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from launch.commands import Shell, Unanswered
from launch.job import Launch


class Machines(StrEnum):
    """The machines of a run, whoever lends them."""

    ABSENT = "absent"
    WAITING = "waiting"
    READY = "ready"
    LOST = "lost"  # taken back, or failed: they never come back and must be deleted
    UNKNOWN = "unknown"  # the provider did not answer


class Process(StrEnum):
    """gemma-train on them."""

    ABSENT = "not set up"
    READY = "set up"
    RUNNING = "running"
    STOPPED = "stopped by hand"
    ENDED = "ended"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A look at a run."""

    machines: Machines
    told: str  # the provider's own word for them
    process: Process = Process.ABSENT
    exit_code: int | None = None  # of a process that has ended

    def __str__(self) -> str:
        if self.machines is not Machines.READY:
            return f"machines {self.machines} ({self.told})"
        code = "" if self.exit_code is None else f", exit code {self.exit_code}"
        return f"machines {self.machines} ({self.told}), gemma-train {self.process}{code}"


@dataclass(frozen=True, kw_only=True)
class Fleet(ABC):
    """The verbs. Each raises `UserError` with the provider's reason where it fails."""

    launch: Launch
    shell: Shell

    @abstractmethod
    def check_source(self) -> None:
        """Raise `UserError` where what setup is to copy is not there."""

    @abstractmethod
    def create(self) -> None: ...
    @abstractmethod
    def setup(self) -> None: ...
    @abstractmethod
    def run(self) -> None:
        """Start the run; what is left of an earlier start is ended."""

    @abstractmethod
    def logs(self) -> int:
        """Follow the first host's log; returns the exit code of what followed it."""

    @abstractmethod
    def stop(self) -> None:
        """Have the run save and end, and stay so."""

    @abstractmethod
    def save(self) -> None:
        """Have the run save and end for another start to follow: no person stopped it."""

    @abstractmethod
    def delete(self) -> None: ...
    @abstractmethod
    def machines(self) -> tuple[Machines, str]:
        """What they do, and the provider's word for it. May raise `Unanswered`."""

    @abstractmethod
    def process(self) -> tuple[Process, int | None]:
        """What gemma-train does on machines that are ready; the exit code of what has ended.

        May raise `Unanswered`.
        """

    def look(self) -> Sighting:
        """What is seen now. A question without an answer ends nothing: it is seen as that.

        Raises `UserError` for a program that is not installed only.
        """
        try:
            machines, told = self.machines()
        except Unanswered as silence:
            machines, told = Machines.UNKNOWN, str(silence)
        if machines is not Machines.READY and not self.shell.dry_run:
            return Sighting(machines=machines, told=told)
        try:
            process, code = self.process()
        except Unanswered:
            process, code = Process.UNREACHABLE, None
        return Sighting(machines=machines, told=told, process=process, exit_code=code)
