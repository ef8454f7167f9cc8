"""What every provider offers, and what is seen of it: the one seam of launch."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


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


class Fleet(Protocol):
    """The verbs. Each raises `UserError` with the provider's reason where it fails."""

    def create(self) -> None: ...
    def setup(self) -> None: ...
    def run(self) -> None: ...
    def logs(self) -> None: ...
    def look(self) -> Sighting: ...
    def stop(self) -> None: ...
    def delete(self) -> None: ...
