"""TPU slices by the words a config uses for them, `v5p:16x16x24`, and what providers call them.

Chips, hosts and accelerator types follow from the topology, so that a rented slice cannot disagree
with the mesh. Source: Google's pages on TPU v4, v5e and v5p, and on TPUs in GKE, read in 2026.
"""

import math
from dataclasses import dataclass
from typing import Self

from gemma_train.errors import UserError, require

CHIPS_PER_HOST = 4  # of the machine types below


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One TPU generation, in each provider's words."""

    name: str
    dimensions: int
    largest_slice: int  # chips
    runtime_version: str  # of a TPU VM
    machine_type: str  # of a host on Compute Engine and GKE
    gke_accelerator: str
    pathways_type: str


V4 = Generation(
    name="v4",
    dimensions=3,
    largest_slice=4096,
    runtime_version="tpu-ubuntu2204-base",
    machine_type="ct4p-hightpu-4t",
    gke_accelerator="tpu-v4-podslice",
    pathways_type="tpuv4",
)
V5E = Generation(
    name="v5e",
    dimensions=2,
    largest_slice=256,
    runtime_version="v2-alpha-tpuv5-lite",
    machine_type="ct5lp-hightpu-4t",
    gke_accelerator="tpu-v5-lite-podslice",
    pathways_type="tpuv5e",
)
V5P = Generation(
    name="v5p",
    dimensions=3,
    largest_slice=6144,
    runtime_version="v2-alpha-tpuv5",
    machine_type="ct5p-hightpu-4t",
    gke_accelerator="tpu-v5p-slice",
    pathways_type="tpuv5",
)
GENERATIONS = {generation.name: generation for generation in (V4, V5E, V5P)}

V5E_SHAPES = "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
# An accelerator type of v5p names a size only: this is the shape that Google gives to each.
V5P_SHAPES = (
    "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8, 8x8x12, 8x8x16, 8x12x16, "
    "8x16x16, 12x16x16, 16x16x16, 16x16x24"
)


@dataclass(frozen=True, kw_only=True)
class TpuSlice:
    """Chips joined by their own network."""

    generation: Generation
    shape: tuple[int, ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """The slice that `text` names. Raises `UserError` where no such slice can be rented."""
        name, _, topology = text.partition(":")
        what = f"mesh.topology is {text!r}"
        generation = GENERATIONS.get(name)
        if generation is None:
            raise UserError(f"{what}: launch knows {', '.join(GENERATIONS)}, as in v5p:16x16x24")
        sides = topology.split("x")
        require(
            len(sides) == generation.dimensions and all(side.isdecimal() for side in sides),
            f"{what}: give {generation.dimensions} sides, as in "
            f"{name}:{'x'.join(['4'] * generation.dimensions)}",
        )
        found = cls(generation=generation, shape=tuple(map(int, sides)))
        found._check(what)
        return found

    def _check(self, what: str) -> None:
        generation = self.generation
        require(
            0 < self.chips <= generation.largest_slice,
            f"{what}, {self.chips} chips: a slice of {generation.name} has at most "
            f"{generation.largest_slice}; use more slices",
        )
        if generation is V5E:
            shapes = V5E_SHAPES.split(", ")
            require(self.topology in shapes, f"{what}: v5e is rented as {V5E_SHAPES}")
            return
        small = {1, 2, 4} >= set(self.shape) and self.chips % CHIPS_PER_HOST == 0
        require(
            small or all(side % 4 == 0 for side in self.shape),
            f"{what}: beyond one cube of 4x4x4 every side must be a multiple of 4",
        )

    @property
    def topology(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        return self.chips // CHIPS_PER_HOST

    @property
    def type_flags(self) -> tuple[str, ...]:
        """What the Cloud TPU API's `create` wants to know of one slice."""
        if self.generation is V4:
            return ("--type=v4", f"--topology={self.topology}")
        if self.generation is V5E:
            return (f"--accelerator-type=v5litepod-{self.chips}",)
        require(
            self.topology in V5P_SHAPES.split(", "),
            f"mesh.topology is 'v5p:{self.topology}': TPU VMs of v5p are rented as "
            f"{V5P_SHAPES}; ManagedInstanceGroup and Gke take others",
        )
        return (f"--accelerator-type=v5p-{2 * self.chips}",)  # named by cores, two a chip
