"""Launch: which run, on whose machines. A launch file ends in `launch = Launch(...)`.

Accelerator type, chips and slices are not said here: they follow from `mesh.topology` and
`mesh.slices` of the run's config. What is left open in a file (OPEN) is refused until a flag or the
environment fills it.
"""

import os
import shlex
import string
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, Self

from gemma_train.errors import UserError, require
from gemma_train.planning.slices import Slices
from launch.commands import Command
from launch.names import FOLDER, LABEL, OPEN, PROJECT, REVISION, ZONE, check_name
from launch.providers import Gke, ManagedInstanceGroup, TpuVm
from launch.rented import Rented

if TYPE_CHECKING:
    from gemma_train.mesh import MeshConfig

ENVIRONMENT = Path(__file__).parent / "environment"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to look again, and when to give up."""

    poll_seconds: float = 60
    backoff_seconds: float = 60  # before the second attempt; doubled for each that follows
    longest_backoff_seconds: float = 3600
    attempts_without_progress: int = 5  # progress is a newer checkpoint
    unreachable_polls: int = 10  # in a row, before machines that do not answer are given up
    stalled_minutes: float = 120  # a run without a newer checkpoint is restarted; 0: never
    saving_seconds: float = 600  # that a run which is stopped may take to save

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "stalled_minutes" else 1
            require(value >= least, f"patience.{name} is {value}: it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run and its machines. `checked` says whether it is ready to be launched."""

    name: str  # of everything that is made in the cloud
    config: str  # the run's file, relative to the repository
    provider: TpuVm | ManagedInstanceGroup | Gke
    project: str = OPEN
    zone: str = OPEN
    folder: str = OPEN  # gs:// folder of the run
    flags: tuple[str, ...] = ()  # more flags of `gemma-train train`, but none of --mesh
    revision: str = "HEAD"  # of git: what is copied to the machines
    patience: Patience = Patience()

    @cached_property
    def mesh(self) -> "MeshConfig":
        from gemma_train import config  # brings jax, which --help and most mistakes can do without

        return config.load(self.config).mesh

    @cached_property
    def rented(self) -> Rented:
        """The config's slices. Raises `UserError` where they cannot be had or filled."""
        try:
            slices = Slices.named(self.mesh.topology, self.mesh.slices)
            slices.check(self.mesh)
            return Rented.of(slices)
        except UserError as error:
            raise UserError(f"{self.config}: {error}") from None

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def location(self) -> str:
        """Of a GKE cluster."""
        regional = isinstance(self.provider, Gke) and self.provider.regional
        return self.region if regional else self.zone

    @property
    def train_words(self) -> tuple[str, ...]:
        """What follows `gemma-train` on every host."""
        return ("train", self.config, "--folder", self.folder, *self.flags)

    def gcloud(
        self,
        *words: str,
        place: Literal["zone", "location", "region", "global"] = "zone",
        may_be_gone: bool = False,
    ) -> Command:
        """A call of gcloud in the project. `place` is how the thing that it is about is found."""
        where = {"zone": self.zone, "location": self.location, "region": self.region}
        flags = [f"--{place}={where[place]}"] if place in where else []
        return Command(
            words=("gcloud", *words, f"--project={self.project}", *flags, "--quiet"),
            may_be_gone=may_be_gone,
        )

    def environment(self) -> dict[str, str]:
        """The variables of the slice's generation, from launch/environment."""
        text = (ENVIRONMENT / f"{self.rented.generation}.env").read_text()
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
        name = "lower-case letters, digits and '-', at most 40, as gemma3"
        check_name("name", self.name, LABEL, name)
        check_name("project", self.project, PROJECT, "--project with its id, as my-project")
        check_name("zone", self.zone, ZONE, "--zone with a zone, as us-east5-a")
        check_name("folder", self.folder, FOLDER, "--folder gs://BUCKET/FOLDER")
        check_name("revision", self.revision, REVISION, "a revision of git")
        file = PurePosixPath(self.config)
        require(
            not file.is_absolute() and ".." not in file.parts,
            f"config is {self.config!r}: name it from the repository's root, as configs/mine.py",
        )
        self._check_flags()
        self._check_slices()
        return self

    def _check_flags(self) -> None:
        """The mesh of the run must be the one that machines are rented for."""
        for flag in self.flags:
            require(
                not flag.startswith("--mesh"),
                f"flags holds {flag!r}: machines are rented for the mesh of {self.config}: "
                "set it there, in a copy of the file",
            )

    def _check_slices(self) -> None:
        """What the provider and the config's slices must be to each other."""
        rented, runtime = self.rented, self.mesh.runtime
        match self.provider:
            case TpuVm():
                _ = rented.type_flags
            case ManagedInstanceGroup():
                require(
                    rented.generation == "v5p" and rented.count == 1,
                    f"provider is ManagedInstanceGroup, mesh {rented.count} x "
                    f"{rented.slices.name}: groups hold one slice of v5p; choose TpuVm or Gke",
                )
            case Gke(pathways=pathways):
                if pathways:
                    return  # --mesh.runtime is ours to add
        require(
            runtime == "many_processes" or rented.hosts * rented.count == 1,
            f"{self.config}: mesh.runtime is {runtime!r}: hosts joined need 'many_processes'",
        )
