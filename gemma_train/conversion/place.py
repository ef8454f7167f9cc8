"""A row of the name table: a parameter of ours, and its place in each format.

Axes are the letters of `axes.py` as einops writes them: `(n h) d` is our `d n h`, transposed, heads
and head dimension as one axis; `()` is an axis of length 1.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Format = Literal["hf", "gemma", "gguf"]


@dataclass(frozen=True)
class Place:
    """Where a format keeps a parameter; `{}` in the name stands for the number of the layer."""

    name: str
    axes: str  # of the array there
    part: int | None = None  # its place along a first axis, where a tensor stacks several of ours
    offset: float = 0.0  # what the format adds to our values


@dataclass(frozen=True)
class Parameter:
    """A parameter of ours, layer by layer, and its place in each format that has one."""

    name: str
    axes: str
    hf: Place
    gemma: Place
    gguf: Place | None
    sizes: Mapping[str, int] = field(default_factory=dict)  # of its axes, by letter
    layers: tuple[int, ...] = (0,)  # that have one; those that are stored stacked in a row

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ours, in one layer."""
        return shape_of(self.axes, self.sizes)

    @property
    def names(self) -> list[str]:
        """Ours, in every layer."""
        return [self.name.format(layer) for layer in self.layers]


def shape_of(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array with these axes: `(n h) d` -> (heads * head dimension, width)."""
    groups = re.findall(r"\([^)]*\)|\w", axes)
    return tuple(
        math.prod(sizes[letter] for letter in re.findall(r"\w", group)) for group in groups
    )
