"""What providers call TPU slices: machine types, accelerator types, runtime versions.

Which slices there are, and of how many chips, gemma_train/planning knows; a rented slice is made
from the config's, so that it cannot disagree with the mesh. Source: Google's pages on TPU v4, v5e
and v5p, and on TPUs in GKE, read in 2026.
"""

import math
from dataclasses import dataclass
from typing import Self

from gemma_train.errors import UserError, require
from gemma_train.planning.slices import Slices

CHIPS_PER_HOST = 4  # of the machine types below


@dataclass(frozen=True, kw_only=True)
class Words:
    """One generation, in each provider's words."""

    runtime_version: str  # of a TPU VM
    machine_type: str  # of a host on Compute Engine and GKE
    gke_accelerator: str
    pathways_type: str


WORDS = {
    "v4": Words(
        runtime_version="tpu-ubuntu2204-base",
        machine_type="ct4p-hightpu-4t",
        gke_accelerator="tpu-v4-podslice",
        pathways_type="tpuv4",
    ),
    "v5e": Words(
        runtime_version="v2-alpha-tpuv5-lite",
        machine_type="ct5lp-hightpu-4t",
        gke_accelerator="tpu-v5-lite-podslice",
        pathways_type="tpuv5e",
    ),
    "v5p": Words(
        runtime_version="v2-alpha-tpuv5",
        machine_type="ct5p-hightpu-4t",
        gke_accelerator="tpu-v5p-slice",
        pathways_type="tpuv5",
    ),
}

# An accelerator type of v5p names a size only: this is the shape that Google gives to each.
V5P_SHAPES = (
    "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8, 8x8x12, 8x8x16, 8x12x16, "
    "8x16x16, 12x16x16, 16x16x16, 16x16x24"
)


@dataclass(frozen=True, kw_only=True)
class Rented:
    """Slices of whole hosts, of a generation that launch has words for."""

    slices: Slices
    words: Words

    @classmethod
    def of(cls, slices: Slices) -> Self:
        """These slices. Raises `UserError` for those that launch cannot ask for."""
        words = WORDS.get(slices.chip.generation)
        if words is None:
            raise UserError(f"mesh.topology is {slices.name}: launch rents {', '.join(WORDS)}")
        require(
            math.prod(slices.shape) % CHIPS_PER_HOST == 0,
            f"mesh.topology is {slices.name}: launch rents hosts of {CHIPS_PER_HOST} chips: "
            f"try {slices.chip.generation}:2x2",
        )
        return cls(slices=slices, words=words)

    @property
    def generation(self) -> str:
        return self.slices.chip.generation

    @property
    def count(self) -> int:
        return self.slices.count

    @property
    def topology(self) -> str:
        """Of one slice, as providers write it: 16x16."""
        return self.slices.sides

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return math.prod(self.slices.shape) // CHIPS_PER_HOST

    @property
    def type_flags(self) -> tuple[str, ...]:
        """What the Cloud TPU API's `create` wants to know of one slice.

        Raises `UserError` for a shape of v5p that it cannot name.
        """
        chips = math.prod(self.slices.shape)
        match self.generation:
            case "v5e":
                return (f"--accelerator-type=v5litepod-{chips}",)
            case "v5p":
                require(
                    self.topology in V5P_SHAPES.split(", "),
                    f"mesh.topology is {self.slices.name}: TPU VMs of v5p are rented as "
                    f"{V5P_SHAPES}; ManagedInstanceGroup and Gke take others",
                )
                return (f"--accelerator-type=v5p-{2 * chips}",)  # named by cores, two a chip
            case generation:
                return (f"--type={generation}", f"--topology={self.topology}")
