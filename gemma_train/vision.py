"""What an image encoder is: a config that models, recipes of data and runs share."""

import math
from dataclasses import dataclass

from gemma_train.errors import require

MOST_LAYERS = 10_000  # of any model: each is told by its name


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A SigLIP encoder's size, and how many soft tokens are made of an image."""

    side: int  # pixels of an image, in height and in width
    patch: int  # pixels of a patch, likewise
    width: int  # of an embedding
    layers: int  # transformer blocks
    heads: int  # divides width
    hidden: int  # feed-forward hidden units
    tokens: int  # soft tokens of an image: a square number

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 1, f"vision.{name} is {value}: it must be at least 1")
        require(
            self.layers <= MOST_LAYERS,
            f"vision.layers is {self.layers}: at most {MOST_LAYERS:,} are believed",
        )
        require(
            self.side % self.patch == 0,
            f"vision.patch is {self.patch}: it must divide vision.side, {self.side}",
        )
        require(
            self.width % self.heads == 0,
            f"vision.heads is {self.heads}: it must divide vision.width, {self.width}",
        )
        side = math.isqrt(self.tokens)
        require(
            side**2 == self.tokens and self.grid % side == 0,
            f"vision.tokens is {self.tokens}: it must be the square of a number that divides "
            f"{self.grid}, the patches in a row of an image",
        )

    @property
    def grid(self) -> int:
        """Patches in a row of an image, and in a column."""
        return self.side // self.patch

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each axis of the encoder's parameters, by its letter."""
        return {
            "e": self.width,
            "n": self.heads,
            "h": self.width // self.heads,
            "f": self.hidden,
            "p": self.patches,
            "y": self.patch,
            "x": self.patch,
            "o": 3,
        }
