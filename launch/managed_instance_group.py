"""A slice of v5p as a managed instance group: template, workload policy with the topology, group.

Source: Google's pages "Create a MIG with multi-host TPU slice" and "Request TPU Spot VMs". The
group is told not to repair single hosts, which would break the slice; it is made anew instead.
"""

import json
from dataclasses import dataclass

from gemma_train.errors import UserError
from launch.commands import Command, Shell
from launch.fleet import Machines
from launch.job import Launch, ManagedInstanceGroup, Reserved

LOST = {"STOPPING", "STOPPED", "SUSPENDING", "SUSPENDED", "TERMINATED"}


@dataclass(frozen=True, kw_only=True)
class InstanceGroup:
    """The group of a run and its instances."""

    launch: Launch
    shell: Shell
    provider: ManagedInstanceGroup

    def _command(self, *words: str, place: str = "zone", may_be_gone: bool = False) -> Command:
        where = {"zone": (f"--zone={self.launch.zone}",), "global": ()}
        where |= {"region": (f"--region={self.launch.region}",)}
        words = ("gcloud", "compute", *words, f"--project={self.launch.project}")
        return Command(words=(*words, *where[place], "--quiet"), may_be_gone=may_be_gone)

    def create(self) -> None:
        name, chips = self.launch.name, self.launch.slice
        policy = (
            f"projects/{self.launch.project}/regions/{self.launch.region}/resourcePolicies/{name}"
        )
        self.shell.run(
            self._command(
                *("instance-templates", "create", name),
                f"--machine-type={chips.generation.machine_type}",
                f"--image-family={self.provider.image_family}",
                f"--image-project={self.provider.image_project}",
                "--boot-disk-size=200GB",
                "--maintenance-policy=TERMINATE",
                "--scopes=cloud-platform",
                *self._capacity_flags(),
                place="global",
            ),
            self._command(
                *("resource-policies", "create", "workload-policy", name),
                *("--type=HIGH_THROUGHPUT", f"--accelerator-topology={chips.topology}"),
                place="region",
            ),
            self._command(
                *("instance-groups", "managed", "create", name, f"--template={name}"),
                *(f"--size={chips.hosts}", f"--workload-policy={policy}"),
                "--default-action-on-vm-failure=do-nothing",
            ),
        )

    def _capacity_flags(self) -> tuple[str, ...]:
        match self.provider.capacity:
            case Reserved(reservation=name):
                bound = "--provisioning-model=RESERVATION_BOUND"
                end = "--instance-termination-action=DELETE"  # this model asks for it
                return (bound, end, "--reservation-affinity=specific", f"--reservation={name}")
            case "spot":
                return ("--provisioning-model=SPOT", "--instance-termination-action=STOP")
            case "on_demand":
                return ()

    def delete(self) -> None:
        """The group first: it holds the other two."""
        name, gone = self.launch.name, {"may_be_gone": True}
        self.shell.run(
            self._command("instance-groups", "managed", "delete", name, **gone),
            self._command("resource-policies", "delete", name, place="region", **gone),
            self._command("instance-templates", "delete", name, place="global", **gone),
        )

    def state(self) -> tuple[Machines, str]:
        words = ("instance-groups", "managed", "list-instances", self.launch.name)
        answer = self.shell.read(self._command(*words, "--format=json"))
        if answer.gone:
            return Machines.ABSENT, "no instance group"
        if answer.code or not answer.out:
            return Machines.UNKNOWN, answer.reason
        states = [instance.get("instanceStatus", "") for instance in json.loads(answer.out)]
        running, wanted = states.count("RUNNING"), self.launch.slice.hosts
        told = f"{running} of {wanted} instances RUNNING"
        if LOST & set(states):
            return Machines.LOST, f"{told}, {', '.join(sorted(LOST & set(states)))}"
        return (Machines.READY if running == wanted else Machines.WAITING), told

    def _instances(self) -> list[str]:
        words = ("instance-groups", "managed", "list-instances", self.launch.name)
        answer = self.shell.read(self._command(*words, "--format=value(name)", "--sort-by=name"))
        if self.shell.dry_run:
            return ["EACH-INSTANCE"]
        if answer.code or not answer.out.split():
            raise UserError(f"group {self.launch.name} has no instances: {answer.reason}")
        return answer.out.split()

    def copy(self, files: tuple[str, ...]) -> None:
        self.shell.run_at_once(
            self._command("scp", *files, f"{instance}:") for instance in self._instances()
        )

    def on_all(self, line: str) -> None:
        self.shell.run_at_once(self._ssh(instance, line) for instance in self._instances())

    def on_first(self, line: str) -> Command:
        return self._ssh(self._instances()[0], line)

    def _ssh(self, instance: str, line: str) -> Command:
        return self._command("ssh", instance, f"--command={line}")
