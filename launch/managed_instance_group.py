"""A slice of v5p as a managed instance group: template, workload policy with the topology, group.

Source: Google's pages "Create a MIG with multi-host TPU slice" and "Request TPU Spot VMs". The
group is told not to repair single hosts, which would break the slice; it is made anew instead.
"""

from dataclasses import dataclass

from launch.commands import Command, Unanswered
from launch.fleet import Machines
from launch.over_ssh import OverSsh
from launch.providers import ManagedInstanceGroup, Reserved

LOST = {"STOPPING", "STOPPED", "SUSPENDING", "SUSPENDED", "TERMINATED"}
TEMPLATE, POLICY = ("compute", "instance-templates"), ("compute", "resource-policies")
GROUP = ("compute", "instance-groups", "managed")


@dataclass(frozen=True, kw_only=True)
class InstanceGroup(OverSsh):
    """The group of a run and its instances."""

    provider: ManagedInstanceGroup

    def create(self) -> None:
        """After a group that was refused, its template and policy are still there: made anew.

        Of a group that exists, neither can be deleted, and so nothing is harmed.
        """
        launch, rented = self.launch, self.launch.rented
        name, place = launch.name, f"projects/{launch.project}/regions/{launch.region}"
        self.shell.run(
            *self._deletions,
            launch.gcloud(
                *(*TEMPLATE, "create", name),
                f"--machine-type={rented.words.machine_type}",
                f"--image-family={self.provider.image_family}",
                f"--image-project={self.provider.image_project}",
                "--boot-disk-size=200GB",
                "--maintenance-policy=TERMINATE",
                "--scopes=cloud-platform",
                *self._capacity_flags(),
                place="global",
            ),
            launch.gcloud(
                *(*POLICY, "create", "workload-policy", name),
                *("--type=HIGH_THROUGHPUT", f"--accelerator-topology={rented.topology}"),
                place="region",
            ),
            launch.gcloud(
                *(*GROUP, "create", name, f"--template={name}", f"--size={rented.hosts}"),
                f"--workload-policy={place}/resourcePolicies/{name}",
                "--default-action-on-vm-failure=do-nothing",
            ),
        )

    def _capacity_flags(self) -> tuple[str, ...]:
        match self.provider.capacity:
            case Reserved(flags=reservation):
                bound = "--provisioning-model=RESERVATION_BOUND"
                end = "--instance-termination-action=DELETE"  # this model asks for it
                return (bound, end, *reservation)
            case "spot":
                return ("--provisioning-model=SPOT", "--instance-termination-action=STOP")
            case "on_demand":
                return ()

    def delete(self) -> None:
        """The group first: it holds the other two."""
        group = self.launch.gcloud(*GROUP, "delete", self.launch.name, may_be_gone=True)
        self.shell.run(group, *self._deletions)

    @property
    def _deletions(self) -> tuple[Command, Command]:
        """Of what a group is made from."""
        gcloud, name = self.launch.gcloud, self.launch.name
        return (
            gcloud(*TEMPLATE, "delete", name, place="global", may_be_gone=True),
            gcloud(*POLICY, "delete", name, place="region", may_be_gone=True),
        )

    def _listed(self, *form: str) -> Command:
        return self.launch.gcloud(*GROUP, "list-instances", self.launch.name, *form)

    def machines(self) -> tuple[Machines, str]:
        answer = self.shell.read(self._listed("--format=json"))
        if answer.gone:
            return Machines.ABSENT, "no instance group"
        states = answer.told(lambda group: [one.get("instanceStatus", "") for one in group])
        running, wanted = states.count("RUNNING"), self.launch.rented.hosts
        told = f"{running} of {wanted} instances RUNNING"
        if lost := LOST & set(states):
            return Machines.LOST, f"{told}, {', '.join(sorted(lost))}"
        return (Machines.READY if running == wanted else Machines.WAITING), told

    def _instances(self) -> list[str]:
        answer = self.shell.read(self._listed("--format=value(name)", "--sort-by=name"))
        if self.shell.dry_run:
            return ["EACH-INSTANCE"]
        if answer.code or not answer.out.split():
            raise Unanswered(f"group {self.launch.name} has no instances: {answer.reason}")
        return answer.out.split()

    def copy(self, *files: str) -> None:
        self.shell.run_at_once(
            self.launch.gcloud("compute", "scp", *files, f"{instance}:")
            for instance in self._instances()
        )

    def on_all(self, line: str) -> None:
        self.shell.run_at_once(self._ssh(instance, line) for instance in self._instances())

    def on_first(self, line: str) -> Command:
        return self._ssh(self._instances()[0], line)

    def _ssh(self, instance: str, line: str) -> Command:
        return self.launch.gcloud("compute", "ssh", instance, f"--command={line}")
