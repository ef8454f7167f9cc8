"""The TPU slices of a run: how they are named, which there are, and what would do instead.

The one owner of these facts, for plan and for launch. Shapes are checked here, for the compiler
takes impossible ones too (v4:16x16x24 has more chips than a pod). It needs no jax.
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_train.errors import UserError
from gemma_train.planning.chips import CHIPS, Chip

if TYPE_CHECKING:
    from gemma_train.mesh import MeshConfig

CUBE = 4  # chips to a side of what 3-D slices are made of


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Equal slices of one generation, joined by the data-center network when there are several."""

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1

    @classmethod
    def named(cls, topology: str | None, count: int = 1) -> "Slices":
        """The slices of a name such as v5p:16x16x24. Raises `UserError` for those that are not."""
        if topology is None:
            raise UserError(
                "mesh.topology is not set: set it in the config, as v5e:4x4 for sixteen chips; "
                "only to plan, give plan --topology"
            )
        found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
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
        """Of one slice, as the compiler and a config have it."""
        return _name(self.chip, self.shape)

    @property
    def sides(self) -> str:
        """Of one slice, as in 16x16."""
        return _sides(self.shape)

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

    def check(self, mesh: "MeshConfig") -> None:
        """Raise `UserError` unless the axes of the mesh multiply to these chips."""
        if mesh.devices == self.chips:
            return
        each = f"{self.name} has" if self.count == 1 else f"{self.count} x {self.name} have"
        raise UserError(
            f"mesh replica {mesh.replica} x data {mesh.data} x seq {mesh.seq} = "
            f"{mesh.devices:,} chips, but {each} {self.chips:,}: choose --mesh.replica, "
            f"--mesh.data and --mesh.seq with product {self.chips:,}"
        )


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
    return _name(chip, best) + (f" with mesh.slices {slices}" if slices > 1 or count > 1 else "")


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
