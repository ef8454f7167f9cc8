"""TPU VMs: queued resources of the Cloud TPU API, one node a slice.

Source: Google's page "Manage queued resources" and the reference of `gcloud compute tpus
queued-resources`. A request that is SUSPENDED or FAILED is never served again.
"""

from dataclasses import dataclass

from launch.commands import Command
from launch.fleet import Machines
from launch.over_ssh import OverSsh
from launch.providers import TpuVm

STATES = {
    "ACTIVE": Machines.READY,
    "SUSPENDING": Machines.LOST,
    "SUSPENDED": Machines.LOST,
    "FAILED": Machines.LOST,
}  # all others lead to ACTIVE or FAILED, or to nothing: ACCEPTED, CREATING, DELETING, PROVISIONING
EVERYWHERE = ("--node=all", "--worker=all")
CAPACITY = {"on_demand": (), "spot": ("--spot",), "reserved": ("--reserved",)}


@dataclass(frozen=True, kw_only=True)
class TpuVms(OverSsh):
    """The queued resource of a run and its nodes."""

    provider: TpuVm

    def _command(self, verb: str, *words: str, may_be_gone: bool = False) -> Command:
        start = ("compute", "tpus", "queued-resources", verb)
        return self.launch.gcloud(*start, *words, may_be_gone=may_be_gone)

    def create(self) -> None:
        name, rented = self.launch.name, self.launch.rented
        nodes = (f"--node-count={rented.count}", f"--node-prefix={name}")
        self.shell.run(
            self._command(
                *("create", name),
                *(nodes if rented.count > 1 else (f"--node-id={name}",)),
                *rented.type_flags,
                f"--runtime-version={rented.words.runtime_version}",
                *CAPACITY[self.provider.capacity],
            )
        )

    def delete(self) -> None:
        """The request and, by --force, the nodes that it holds."""
        self.shell.run(self._command("delete", self.launch.name, "--force", may_be_gone=True))

    def machines(self) -> tuple[Machines, str]:
        answer = self.shell.read(self._command("describe", self.launch.name, "--format=json"))
        if answer.gone:
            return Machines.ABSENT, "no queued resource"
        told = answer.told(lambda request: str(request["state"]["state"]))
        return STATES.get(told, Machines.WAITING), told

    def copy(self, *files: str) -> None:
        self.shell.run(self._command("scp", *files, f"{self.launch.name}:", *EVERYWHERE))

    def on_all(self, line: str) -> None:
        self.shell.run(self._command("ssh", self.launch.name, *EVERYWHERE, f"--command={line}"))

    def on_first(self, line: str) -> Command:
        first = ("--node=0", "--worker=0")
        return self._command("ssh", self.launch.name, *first, f"--command={line}")
