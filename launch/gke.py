"""GKE: one node pool a slice, and a JobSet of one pod a host, or Pathways' head and workers.

JobSet restarts a run inside the cluster, and ends it on the exit codes that ask for a person or for
other machines. Its templates follow Google's page "Deploy TPU Multislices in GKE" and the API of
JobSet v1alpha2.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from gemma_train.errors import FaultyHardware, Unrecoverable, UserError
from launch.commands import Command
from launch.fleet import Fleet, Machines, Process
from launch.providers import Gke, Reserved

# Exit codes that JobSet is not to answer with another start on the same machines.
ENDING = (UserError.exit_code, Unrecoverable.exit_code, FaultyHardware.exit_code)
ENDED = "FailJobSetFailurePolicyAction"  # JobSet's word for what its rule on these codes did
STATES = {"ERROR": Machines.LOST, "STOPPING": Machines.LOST, "PROVISIONING": Machines.WAITING}


@dataclass(frozen=True, kw_only=True)
class GkeFleet(Fleet):
    """Node pools and JobSet of a run."""

    provider: Gke

    @property
    def _pools(self) -> list[str]:
        return [f"{self.launch.name}-{number}" for number in range(self.launch.rented.count)]

    def _node_pools(self, *words: str, may_be_gone: bool = False) -> Command:
        start = ("container", "node-pools", *words)
        return self.launch.gcloud(*start, place="location", may_be_gone=may_be_gone)

    def _kubectl(self, *words: str, stdin: str | None = None, may_be_gone: bool = False) -> Command:
        context = f"gke_{self.launch.project}_{self.launch.location}_{self.provider.cluster}"
        where = (f"--context={context}", f"--namespace={self.provider.namespace}")
        return Command(words=("kubectl", *where, *words), stdin=stdin, may_be_gone=may_be_gone)

    @property
    def _cluster(self) -> str:
        return f"--cluster={self.provider.cluster}"

    def check_source(self) -> None:
        """The image holds it."""

    def create(self) -> None:
        rented = self.launch.rented
        flags = (
            self._cluster,
            f"--machine-type={rented.words.machine_type}",
            f"--tpu-topology={rented.topology}",
            f"--num-nodes={rented.hosts}",
            *((f"--node-locations={self.launch.zone}",) if self.provider.regional else ()),
            "--placement-type=COMPACT",
            "--scopes=cloud-platform",
            *self._capacity_flags(),
        )
        self.shell.run(*(self._node_pools("create", pool, *flags) for pool in self._pools))

    def _capacity_flags(self) -> tuple[str, ...]:
        match self.provider.capacity:
            case Reserved(flags=reservation):
                return reservation
            case "spot":
                return ("--spot",)
            case "on_demand":
                return ()

    def setup(self) -> None:
        """Access to the cluster; the image and the secret are there already."""
        access = ("container", "clusters", "get-credentials", self.provider.cluster)
        self.shell.run(self.launch.gcloud(*access, place="location"))
        if self.provider.secret:
            self.shell.run(self._kubectl("get", "secret", self.provider.secret, "--output=name"))

    def run(self) -> None:
        self._delete_jobset()
        self.shell.run(self._kubectl("apply", "--filename=-", stdin=self.manifest()))

    def manifest(self) -> str:
        """The JobSet, as YAML."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        name, words = "jobset", self.launch.train_words
        if self.provider.pathways:
            name, words = "pathways", (*words, "--mesh.runtime", "pathways")
        return environment.get_template(f"{name}.yaml.jinja").render(
            launch=self.launch,
            gke=self.provider,
            rented=self.launch.rented,
            words=words,
            ending=ENDING,
        )

    def logs(self) -> int:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": self.launch.name,
            "jobset.sigs.k8s.io/replicatedjob-name": "head" if self.provider.pathways else "slice",
            "jobset.sigs.k8s.io/job-index": "0",
            "batch.kubernetes.io/job-completion-index": "0",
        }
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        how = ("--container=train", "--tail=200", "--follow")
        return self.shell.follow(self._kubectl("logs", f"--selector={selector}", *how))

    def machines(self) -> tuple[Machines, str]:
        """The worst that is said of a pool holds for all: a run needs every slice."""
        answer = self.shell.read(self._node_pools("list", self._cluster, "--format=json"))
        states = answer.told(lambda pools: {pool["name"]: str(pool["status"]) for pool in pools})
        found = [states[name] for name in self._pools if name in states]
        if not found:
            return Machines.ABSENT, "no node pool"
        if len(found) < len(self._pools):
            return Machines.LOST, f"{len(found)} of {len(self._pools)} node pools"
        seen, told = {STATES.get(state) for state in found}, ", ".join(sorted(set(found)))
        worst = (state for state in (Machines.LOST, Machines.WAITING) if state in seen)
        return next(worst, Machines.READY), told

    def process(self) -> tuple[Process, int | None]:
        answer = self.shell.read(self._kubectl("get", "jobset", self.launch.name, "--output=json"))
        if answer.code and "context" in answer.error and "does not exist" in answer.error:
            return Process.ABSENT, None  # no access yet
        if answer.gone:
            return Process.READY, None
        process, code = answer.told(_process_of)
        if process is Process.ENDED and code is None:
            return process, self._ending_code()
        return process, code

    def _ending_code(self) -> int:
        """Of the pod that ended a JobSet by its rule: others of its run end for the lack of it.

        Where no pod is left to tell, it is the first: a person looks at it.
        """
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={self.launch.name}"
        answer = self.shell.read(self._kubectl("get", "pods", selector, "--output=json"))
        return min(answer.told(_exit_codes) & set(ENDING), default=ENDING[0])

    def stop(self) -> None:
        """Suspended, a JobSet ends its pods by SIGTERM and keeps its name."""
        patch = json.dumps({"spec": {"suspend": True}})
        how = ("--type=merge", f"--patch={patch}")
        self.shell.run(self._kubectl("patch", "jobset", self.launch.name, *how))

    def save(self) -> None:
        """Deleted, for a suspended JobSet is one that a person stopped; its pods end first."""
        self._delete_jobset("--cascade=foreground")

    def delete(self) -> None:
        self._delete_jobset()
        for pool in self._pools:
            self.shell.run(self._node_pools("delete", pool, self._cluster, may_be_gone=True))

    def _delete_jobset(self, *how: str) -> None:
        words = ("delete", "jobset", self.launch.name, "--ignore-not-found", "--wait", *how)
        self.shell.run(self._kubectl(*words, may_be_gone=True))  # without access there is none


def _exit_codes(pods: dict[str, Any]) -> set[int]:
    """Those with which containers of pods, as JSON, have ended."""
    containers = [
        container
        for pod in pods["items"]
        for container in pod.get("status", {}).get("containerStatuses", [])
    ]
    ends = [container.get("state", {}).get("terminated") for container in containers]
    return {int(end["exitCode"]) for end in ends if end}


def _process_of(jobset: dict[str, Any]) -> tuple[Process, int | None]:
    """What the conditions of a JobSet, as JSON, say of the run; the code is its pods' to tell."""
    conditions = {
        condition["type"]: condition.get("reason", "")
        for condition in jobset.get("status", {}).get("conditions", [])
        if condition["status"] == "True"
    }
    if "Completed" in conditions:
        return Process.ENDED, 0
    if "Failed" in conditions:
        return Process.ENDED, None if conditions["Failed"] == ENDED else 1
    return (Process.STOPPED if jobset["spec"].get("suspend") else Process.RUNNING), None
