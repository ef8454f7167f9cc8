"""Launch: which run, on whose machines. A launch file ends in `launch = Launch(...)`.

Accelerator type, chips and slices are not said here: they follow from `mesh.topology` and
`mesh.slices` of the run's config. What is left open in a file (OPEN) is refused until a flag or the
environment fills it.
"""

import os
import re
import shlex
import string
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from gemma_train import config as run_config
from gemma_train.errors import UserError, require
from gemma_train.mesh import MeshConfig
from launch.topology import V5P, TpuSlice

OPEN = "FILL-IN"  # no name of anything: it holds capitals
ENVIRONMENT = Path(__file__).parent / "environment"
LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # RFC 1035, short enough for suffixes of ours and GKE's
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Machines of a reservation of Compute Engine."""

    reservation: str


type Capacity = Literal["on_demand", "spot"] | Reserved


@dataclass(frozen=True, kw_only=True)
class TpuVm:
    """TPU VMs through queued resources of the Cloud TPU API."""

    capacity: Literal["on_demand", "spot", "reserved"] = "on_demand"
    secrets: tuple[str, ...] = ()  # variables of the environment here that the run needs there


@dataclass(frozen=True, kw_only=True)
class ManagedInstanceGroup:
    """One slice as a managed instance group of Compute Engine: v5p, of what launch knows."""

    capacity: Capacity = "on_demand"
    image_family: str = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
    image_project: str = "ubuntu-os-accelerator-images"
    secrets: tuple[str, ...] = ()  # variables of the environment here that the run needs there


@dataclass(frozen=True, kw_only=True)
class Pathways:
    """Images of Google's Pathways containers, and the node pool where its head runs."""

    server_image: str
    proxy_image: str
    head_pool: str = "cpu-np"


@dataclass(frozen=True, kw_only=True)
class Gke:
    """A JobSet on a cluster that exists and has the JobSet controller."""

    cluster: str
    image: str  # built from launch/Dockerfile
    namespace: str = "default"
    capacity: Capacity = "on_demand"
    secret: str | None = None  # a Kubernetes secret whose entries become variables of the run
    pathways: Pathways | None = None  # one process drives all slices, instead of one a host


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to look again, and when to give up."""

    poll_seconds: float = 60
    backoff_seconds: float = 60  # before the second attempt; doubled for each that follows
    longest_backoff_seconds: float = 3600
    attempts_without_progress: int = 5  # progress is a newer checkpoint
    unreachable_polls: int = 10  # in a row, before machines that do not answer are given up


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run and its machines. `checked` says whether it is ready to be launched."""

    name: str  # of everything that is made in the cloud
    config: str  # the run's file, relative to the repository
    provider: TpuVm | ManagedInstanceGroup | Gke
    project: str = OPEN
    zone: str = OPEN
    folder: str = OPEN  # gs:// folder of the run
    flags: tuple[str, ...] = ()  # more flags of `gemma-train train`
    revision: str = "HEAD"  # of git: what is copied to the machines
    patience: Patience = Patience()

    @cached_property
    def mesh(self) -> MeshConfig:
        return run_config.load(self.config).mesh

    @cached_property
    def slice(self) -> TpuSlice:
        """One of the config's slices. Raises `UserError` where it names none."""
        topology = self.mesh.topology
        require(
            topology is not None,
            f"{self.config} names no mesh.topology: give the slice to rent, as in v5p:4x4x4",
        )
        return TpuSlice.read(topology)

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def train_words(self) -> tuple[str, ...]:
        """What follows `gemma-train` on every host."""
        return ("train", self.config, "--folder", self.folder, *self.flags)

    def environment(self) -> dict[str, str]:
        """The variables of the slice's generation, from launch/environment."""
        text = (ENVIRONMENT / f"{self.slice.generation.name}.env").read_text()
        words = shlex.split(string.Template(text).substitute(FOLDER=self.folder), comments=True)
        pairs = (word.split("=", 1) for word in words)
        return {name: " ".join(value.split()) for name, value in pairs}

    def filled(self, **given: str | None) -> Self:
        """With what flags give; a project still open is taken from CLOUDSDK_CORE_PROJECT."""
        changed = replace(self, **{name: value for name, value in given.items() if value})
        project = os.environ.get("CLOUDSDK_CORE_PROJECT")
        return replace(changed, project=project) if changed.project == OPEN and project else changed

    def checked(self) -> Self:
        """Itself. Raises `UserError` for a field that is open, unfit or at odds with the config."""
        _fits(self.name, LABEL, "name", "lower-case letters, digits and '-', at most 40, as gemma3")
        project, zone, bucket = (
            r"[a-z][-a-z0-9]{4,28}[a-z0-9]",
            r"[a-z]+-[a-z]+[0-9]{1,2}-[a-z]",
            r"gs://[a-z0-9][-a-z0-9_.]{1,220}[a-z0-9](/[-A-Za-z0-9_.]+)+",
        )
        _fits(self.project, project, "project", "--project with a project's id, as my-project")
        _fits(self.zone, zone, "zone", "--zone with a zone, as us-east5-a")
        _fits(self.folder, bucket, "folder", "--folder gs://BUCKET/FOLDER")
        file = PurePosixPath(self.config)
        require(
            not file.is_absolute() and ".." not in file.parts,
            f"config is {self.config!r}: name it from the repository's root, as configs/mine.py",
        )
        _fits(self.revision, r"[A-Za-z0-9][-A-Za-z0-9_./~^]*", "revision", "a revision of git")
        self._check_mesh()
        self._check_provider()
        return self

    def _check_mesh(self) -> None:
        chips, devices = self.slice.chips * self.mesh.slices, self.mesh.devices
        require(
            chips == devices,
            f"{self.config}: mesh.topology x mesh.slices are {chips} chips, but "
            f"replica x data x seq are {devices} devices: make them equal",
        )
        wanted = "many_processes"
        if isinstance(self.provider, Gke) and self.provider.pathways:
            return  # the flag is ours to add
        require(
            self.mesh.runtime == wanted or self.slice.hosts * self.mesh.slices == 1,
            f"{self.config}: mesh.runtime is {self.mesh.runtime!r}: hosts joined need {wanted!r}",
        )

    def _check_provider(self) -> None:
        match self.provider:
            case TpuVm(secrets=secrets, capacity=capacity):
                known = ("on_demand", "spot", "reserved")
                require(
                    capacity in known,
                    f"provider.capacity is {capacity!r}: choose one of {', '.join(known)}",
                )
                _ = self.slice.type_flags
                _check_secrets(secrets)
            case ManagedInstanceGroup(secrets=secrets) as group:
                require(
                    self.slice.generation is V5P and self.mesh.slices == 1,
                    f"provider is ManagedInstanceGroup, mesh {self.mesh.slices} x "
                    f"{self.mesh.topology}: groups hold one slice of v5p; choose TpuVm or Gke",
                )
                _fits(group.image_family, LABEL, "provider.image_family", "a family of images")
                _fits(group.image_project, LABEL, "provider.image_project", "a project")
                _check_secrets(secrets)
                _check_capacity(group.capacity)
            case Gke() as gke:
                _check_capacity(gke.capacity)
                for field in ("cluster", "namespace"):
                    _fits(getattr(gke, field), LABEL, f"provider.{field}", "its name")
                images = [gke.image]
                if gke.pathways:
                    _fits(gke.pathways.head_pool, LABEL, "provider.pathways.head_pool", "its name")
                    images += [gke.pathways.server_image, gke.pathways.proxy_image]
                for image in images:
                    reference = r"[a-z0-9][-A-Za-z0-9_./:]*(@sha256:[0-9a-f]{64})?"
                    _fits(image, reference, "provider image", "HOST/PATH:TAG of an image")
                if gke.secret is not None:
                    _fits(gke.secret, LABEL, "provider.secret", "a secret's name")


def _fits(value: str, pattern: str, field: str, wanted: str) -> None:
    if not re.fullmatch(pattern, value):
        told = "still open" if value == OPEN else repr(value)
        raise UserError(f"{field} is {told}: give {wanted}")


def _check_capacity(capacity: Capacity) -> None:
    match capacity:
        case Reserved(reservation=name):
            _fits(name, LABEL, "provider.capacity.reservation", "its name")
        case "on_demand" | "spot":
            pass
        case _:
            raise UserError(
                f"provider.capacity is {capacity!r}: choose 'on_demand', 'spot' or Reserved(...)"
            )


def _check_secrets(names: tuple[str, ...]) -> None:
    for name in names:
        _fits(name, VARIABLE, "provider.secrets", "names of variables, never their values")
