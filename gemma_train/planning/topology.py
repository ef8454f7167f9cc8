"""The TPU slices of a run: which shapes exist, and the devices that the TPU compiler makes of them.

Shapes are checked here, for the compiler takes impossible ones too (v4:16x16x24 has more chips
than a pod). Its devices exist on any Linux machine: they compile, and run nothing.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from gemma_train.errors import UserError, require
from gemma_train.mesh import MeshConfig
from gemma_train.planning.chips import CHIPS, Chip
from gemma_train.silence import silenced_standard_error

CUBE = 4  # chips to a side of what 3-D slices are made of


class NoCompiler(Exception):
    """The TPU compiler is not on this machine, or does not start; says why."""


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Equal slices of one generation, joined by the data-center network when there are several."""

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1

    @classmethod
    def named(cls, topology: str | None, count: int = 1) -> "Slices":
        """The slices of a name such as v5p:16x16x24. Raises `UserError` for those that are not."""
        require(
            topology is not None,
            "mesh.topology is not set: add --topology, such as v5e:4x4 for sixteen chips",
        )
        found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology or "")
        if found is None:
            raise UserError(f"mesh.topology is {topology!r}: write it as v5e:16x16 or v5p:4x4x8")
        chip = CHIPS.get(found[1])
        if chip is None:
            raise UserError(
                f"mesh.topology is {topology!r}: the chips known are {', '.join(CHIPS)}"
            )
        shape = tuple(map(int, found[2].split("x")))
        if refusal := _refusal(chip, shape):
            raise UserError(
                f"mesh.topology is {topology}: {refusal}: try {_nearest(chip, shape, count)}"
            )
        return cls(chip=chip, shape=shape, count=count)

    @property
    def name(self) -> str:
        return _name(self.chip, self.shape)

    @property
    def chips(self) -> int:
        """Of all slices; each is one device."""
        return self.count * math.prod(self.shape)

    @property
    def is_torus(self) -> bool:
        """Whether links wrap around in every dimension, so that a ring runs both ways."""
        if self.chip.dimensions == 2:
            return all(side == 16 for side in self.shape)
        return all(side % CUBE == 0 for side in self.shape)

    def check(self, mesh: MeshConfig) -> None:
        """Raise `UserError` unless the axes of the mesh multiply to these chips."""
        if mesh.devices == self.chips:
            return
        each = f"{self.name} has" if self.count == 1 else f"{self.count} x {self.name} have"
        raise UserError(
            f"mesh replica {mesh.replica} x data {mesh.data} x seq {mesh.seq} = "
            f"{mesh.devices:,} chips, but {each} {self.chips:,}: choose --mesh.replica, "
            f"--mesh.data and --mesh.seq with product {self.chips:,}"
        )


def devices(slices: Slices) -> list[jax.Device]:
    """The devices of these slices, to compile for. Raises `NoCompiler` where there is no libtpu."""
    # Without the first, libtpu asks a metadata server that is not there; without the second,
    # another process that uses libtpu makes this one abort.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict = {"num_slices": slices.count}
    if slices.chip.generation == "v4":
        options["chip_config_name"] = "megacore"  # otherwise each core is a device
    if math.prod(slices.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)

    def made() -> list[jax.Device] | Exception:
        """An error that has its own words leaves the noise behind."""
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=slices.name, **options
            )
        except (ImportError, RuntimeError, NotImplementedError) as error:
            return error
        return list(description.devices)

    with silenced_standard_error():
        found = made()
    if isinstance(found, Exception):
        raise NoCompiler((str(found) or type(found).__name__).splitlines()[0]) from found
    return found


def _refusal(chip: Chip, shape: tuple[int, ...]) -> str | None:
    """Why there is no such slice; None where there is."""
    chips, generation = math.prod(shape), chip.generation
    if len(shape) != chip.dimensions:
        return f"{generation} slices have {chip.dimensions} dimensions"
    if shape in chip.shapes:
        return None
    if chips > chip.pod_chips:
        return f"a {generation} pod has {chip.pod_chips:,} chips, not {chips:,}"
    if chips > chip.slice_chips:
        return f"a {generation} slice has at most {chip.slice_chips:,} chips, not {chips:,}"
    if chip.dimensions == 2:
        return f"{generation} slices are {', '.join(map(_sides, chip.shapes))}"
    if any(side % CUBE for side in shape):
        small = ", ".join(map(_sides, chip.shapes))
        return f"{generation} slices are {small}, or have sides that are multiples of {CUBE}"
    return "sides are written from the shortest to the longest" if _unsorted(shape) else None


def _unsorted(shape: tuple[int, ...]) -> bool:
    return list(shape) != sorted(shape)


def _nearest(chip: Chip, shape: tuple[int, ...], count: int) -> str:
    """A request that would do: as many chips, if a few equal slices have them, or nearly as many.

    Sides that are powers of two come first: the axes of most meshes lie along them.
    """
    wanted = count * math.prod(shape)
    shapes = [*chip.shapes]
    if chip.dimensions == 3:
        shapes += _cubes(chip.slice_chips)

    def slices_of(candidate: tuple[int, ...]) -> int:
        return max(1, round(wanted / math.prod(candidate)))

    def rank(candidate: tuple[int, ...]) -> tuple:
        slices = slices_of(candidate)
        missed, more = abs(slices * math.prod(candidate) - wanted), abs(slices - count)
        odd = any(side & (side - 1) for side in candidate)
        exact = missed == 0 and slices <= 8 * count
        return (0, odd, more, 0) if exact else (1, more, missed, odd)

    best = min(shapes, key=lambda candidate: (rank(candidate), max(candidate)))
    slices = slices_of(best)
    return _name(chip, best) + (f" with --slices {slices}" if slices > 1 or count > 1 else "")


def _cubes(chips: int) -> Iterator[tuple[int, ...]]:
    """Shapes of whole cubes, of at most so many chips, sides in order."""
    sides = range(CUBE, 28 + 1, CUBE)  # the longest side of a pod: 16x20x28
    for shape in itertools.combinations_with_replacement(sides, 3):
        if math.prod(shape) <= chips:
            yield shape


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _name(chip: Chip, shape: tuple[int, ...]) -> str:
    return f"{chip.generation}:{_sides(shape)}"
