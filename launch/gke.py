"""GKE: one node pool a slice, and a JobSet of one pod a host, or Pathways' head and workers.

JobSet restarts a run inside the cluster, and ends it on exit code 2, a mistake in the config. Its
templates follow Google's page "Deploy TPU Multislices in GKE" and the API of JobSet v1alpha2.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jinja2

from launch.commands import Command, Shell
from launch.fleet import Machines, Process, Sighting
from launch.job import Gke, Launch, Reserved

CONFIG_ERROR = "FailJobSetFailurePolicyAction"  # JobSet's word for what its rule on code 2 did
SEPARATE = {"ERROR": Machines.LOST, "STOPPING": Machines.LOST, "PROVISIONING": Machines.WAITING}


@dataclass(frozen=True, kw_only=True)
class GkeFleet:
    """Node pools and JobSet of a run."""

    launch: Launch
    shell: Shell
    provider: Gke

    @property
    def _pools(self) -> list[str]:
        return [f"{self.launch.name}-{number}" for number in range(self.launch.mesh.slices)]

    def _gcloud(self, *words: str, may_be_gone: bool = False) -> Command:
        place = (f"--project={self.launch.project}", f"--location={self.launch.zone}")
        return Command(
            words=("gcloud", "container", *words, *place, "--quiet"), may_be_gone=may_be_gone
        )

    def _kubectl(self, *words: str, stdin: str | None = None, may_be_gone: bool = False) -> Command:
        context = f"gke_{self.launch.project}_{self.launch.zone}_{self.provider.cluster}"
        where = (f"--context={context}", f"--namespace={self.provider.namespace}")
        return Command(words=("kubectl", *where, *words), stdin=stdin, may_be_gone=may_be_gone)

    def create(self) -> None:
        chips, cluster = self.launch.slice, f"--cluster={self.provider.cluster}"
        match self.provider.capacity:
            case Reserved(reservation=name):
                capacity = ("--reservation-affinity=specific", f"--reservation={name}")
            case "spot":
                capacity = ("--spot",)
            case "on_demand":
                capacity = ()
        self.shell.run(
            *(
                self._gcloud(
                    *("node-pools", "create", pool, cluster),
                    f"--machine-type={chips.generation.machine_type}",
                    f"--tpu-topology={chips.topology}",
                    f"--num-nodes={chips.hosts}",
                    "--placement-type=COMPACT",
                    "--scopes=cloud-platform",
                    *capacity,
                )
                for pool in self._pools
            )
        )

    def setup(self) -> None:
        """Access to the cluster; the image and the secret are there already."""
        self.shell.run(self._gcloud("clusters", "get-credentials", self.provider.cluster))
        if self.provider.secret:
            self.shell.run(self._kubectl("get", "secret", self.provider.secret, "--output=name"))

    def run(self) -> None:
        self._delete_jobset()
        self.shell.run(self._kubectl("apply", "--filename=-", stdin=self.manifest()))

    def manifest(self) -> str:
        """The JobSet, as YAML."""
        name = "pathways" if self.provider.pathways else "jobset"
        folder = Path(__file__).parent
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        words = self.launch.train_words
        if self.provider.pathways:
            words = (*words, "--mesh.runtime", "pathways")
        return environment.get_template(f"{name}.yaml.jinja").render(
            launch=self.launch, gke=self.provider, slice=self.launch.slice, words=words
        )

    def logs(self) -> None:
        role = "head" if self.provider.pathways else "slice"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": self.launch.name,
            "jobset.sigs.k8s.io/replicatedjob-name": role,
            "jobset.sigs.k8s.io/job-index": "0",
            "batch.kubernetes.io/job-completion-index": "0",
        }
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        self.shell.follow(
            self._kubectl(
                *("logs", f"--selector={selector}", "--container=train", "--tail=200", "--follow")
            )
        )

    def look(self) -> Sighting:
        words = ("node-pools", "list", f"--cluster={self.provider.cluster}", "--format=json")
        answer = self.shell.read(self._gcloud(*words))
        jobset = self._kubectl("get", "jobset", self.launch.name, "--output=json")
        if self.shell.dry_run:
            self.shell.read(jobset)
        if answer.code or not answer.out:
            return Sighting(machines=Machines.UNKNOWN, told=answer.reason)
        states = {pool["name"]: pool["status"] for pool in json.loads(answer.out)}
        found = [states[name] for name in self._pools if name in states]
        told = ", ".join(sorted(set(found))) or "no node pool"
        if not found:
            return Sighting(machines=Machines.ABSENT, told=told)
        machines = {SEPARATE.get(state, Machines.READY) for state in found}
        if len(found) < len(self._pools):
            machines, told = {Machines.LOST}, f"{len(found)} of {len(self._pools)} node pools"
        for state in (Machines.LOST, Machines.WAITING):
            if state in machines:
                return Sighting(machines=state, told=told)
        process, code = self._process(jobset)
        return Sighting(machines=Machines.READY, told=told, process=process, exit_code=code)

    def _process(self, jobset: Command) -> tuple[Process, int | None]:
        answer = self.shell.read(jobset)
        if answer.code and "context" in answer.error and "does not exist" in answer.error:
            return Process.ABSENT, None  # no access yet
        if answer.gone:
            return Process.READY, None
        if answer.code:
            return Process.UNREACHABLE, None
        held = json.loads(answer.out)
        conditions = {
            condition["type"]: condition.get("reason", "")
            for condition in held.get("status", {}).get("conditions", [])
            if condition["status"] == "True"
        }
        if "Completed" in conditions:
            return Process.ENDED, 0
        if "Failed" in conditions:
            return Process.ENDED, 2 if conditions["Failed"] == CONFIG_ERROR else 1
        if held["spec"].get("suspend"):
            return Process.STOPPED, None
        return Process.RUNNING, None

    def stop(self) -> None:
        """Suspended, a JobSet ends its pods by SIGTERM and keeps its name."""
        patch = json.dumps({"spec": {"suspend": True}})
        self.shell.run(
            self._kubectl("patch", "jobset", self.launch.name, "--type=merge", f"--patch={patch}")
        )

    def delete(self) -> None:
        self._delete_jobset()
        cluster = f"--cluster={self.provider.cluster}"
        for pool in self._pools:
            self.shell.run(self._gcloud("node-pools", "delete", pool, cluster, may_be_gone=True))

    def _delete_jobset(self) -> None:
        words = ("delete", "jobset", self.launch.name, "--ignore-not-found", "--wait")
        self.shell.run(self._kubectl(*words, may_be_gone=True))  # without access there is none
