"""Parameters declared by their letters: shape, fan-in and split follow from the alphabet."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from gemma_train.zero3 import ruled_sharding


class Declaration:
    """Declares the parameters of one block, or of `stack` equal blocks that a scan runs through.

    `sizes` gives the length of each letter's axis; `rngs` draws one key a weight. Stacked
    parameters carry a leading axis l.
    """

    def __init__(self, sizes: dict[str, int], rngs: nnx.Rngs, stack: int | None = None):
        self.sizes = sizes if stack is None else {"l": stack, **sizes}
        self.rngs = rngs
        self.prefix = "" if stack is None else "l"

    def weight(self, letters: str, *, fan_in: str) -> nnx.Param:
        """A float32 matrix, normal with variance 1 / (product of the `fan_in` axes)."""
        letters, shape = self._shape(letters)
        deviation = math.prod(self.sizes[letter] for letter in fan_in) ** -0.5
        draw = partial(_drawn, shape=shape, sharding=ruled_sharding(letters, shape))
        return nnx.Param(draw(self.rngs.params(), deviation))

    def scale(self, letters: str) -> nnx.Param:
        """The float32 scale w of an RMSNorm that multiplies by 1 + w: zeros."""
        letters, shape = self._shape(letters)
        return nnx.Param(jnp.zeros(shape, out_sharding=ruled_sharding(letters, shape)))

    def _shape(self, letters: str) -> tuple[str, tuple[int, ...]]:
        letters = self.prefix + letters
        return letters, tuple(self.sizes[letter] for letter in letters)


@partial(jax.jit, static_argnames=("shape", "sharding"))
def _drawn(
    key: jax.Array, deviation: float, *, shape: tuple[int, ...], sharding: PartitionSpec | None
) -> jax.Array:
    """A program of its own, compiled once a shape: a compiler takes seconds for many in one."""
    return jax.random.normal(key, shape, jnp.float32, out_sharding=sharding) * deviation
