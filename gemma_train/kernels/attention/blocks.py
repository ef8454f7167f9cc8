"""Rows cut into blocks of positions: the queries of each, and the keys around those."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` queries, of a row of `length`. With the keys of each come those of so many
    blocks `ahead` of it, and so many keys `behind` it."""

    length: int
    size: int
    ahead: int = 0
    behind: int = 0

    @property
    def count(self) -> int:
        """Blocks of a row; zeros fill the last."""
        return -(-self.length // self.size)

    def queries(self, x: jax.Array) -> jax.Array:
        """[b, t, ...] -> [b * c, size, ...]."""
        filled = _from(x, 0, self.count * self.size)
        return filled.reshape(-1, self.size, *x.shape[2:])

    def keys(self, x: jax.Array, first: int) -> jax.Array:
        """[b, s, ...] -> [b * c, ahead * size + size + behind, ...].

        The row's first query stands at key `first`; beyond the keys that are given stand zeros.
        """
        tail = -(-self.behind // self.size)  # blocks that hold what is behind the last
        whole = self.ahead + self.count + tail
        x = _from(x, first - self.ahead * self.size, whole * self.size)
        x = x.reshape(x.shape[0], whole, self.size, *x.shape[2:])
        seen = (self.ahead + 1) * self.size + self.behind
        around = [
            x[:, place : place + self.count, : seen - place * self.size]
            for place in range(self.ahead + 1 + tail)
        ]
        together = jnp.concatenate(around, axis=2)
        return together.reshape(-1, *together.shape[2:])

    def rows(self, x: jax.Array) -> jax.Array:
        """[b * c, size, ...] -> [b, t, ...]: queries in their rows again."""
        rows = x.reshape(-1, self.count * self.size, *x.shape[2:])
        return rows[:, : self.length]


def _from(x: jax.Array, first: int, length: int) -> jax.Array:
    """[b, length, ...] of x from place `first` on, zeros where that lies outside of it."""
    ends = (-first, length + first - x.shape[1], 0)
    rest = [(0, 0, 0)] * (x.ndim - 2)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), ends, *rest])
