"""The vocabulary over devices, inside a shard_map: each has rows of the table, and all tokens.

Devices along the axes that split the table's rows hold different vocabulary ids. They work on each
other's tokens, chunk by chunk: a chunk of every device is gathered, each computes the part of its
own ids, and what was found goes back to the device whose token it is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def chunks[Tree](tree: Tree, chunk: int) -> Tree:
    """Arrays [b, t, ...] as [number, chunk, ...] of tokens, the last filled with zeros."""

    def of(x: jax.Array) -> jax.Array:
        tokens = x.shape[0] * x.shape[1]
        length = min(chunk, tokens)
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, ((0, -tokens % length), *((0, 0),) * (flat.ndim - 1)))
        return flat.reshape(-1, length, *flat.shape[1:])

    return jax.tree.map(of, tree)


def whole_rows(table_vd: jax.Array, columns: Sequence[str]) -> jax.Array:
    """This device's rows of the table, their columns gathered, one axis a hop."""
    for axis in reversed(columns):
        table_vd = jax.lax.all_gather(table_vd, axis, axis=1, tiled=True)
    return table_vd


def first_row(table_vd: jax.Array, rows: Sequence[str]) -> jax.Array | int:
    """The vocabulary id of this device's first row."""
    return jax.lax.axis_index(tuple(rows)) * table_vd.shape[0] if rows else 0


def gathered(x: jax.Array, rows: Sequence[str]) -> jax.Array:
    """A chunk of every device along the rows axes, one after the other."""
    for axis in reversed(rows):
        x = jax.lax.all_gather(x, axis, axis=0, tiled=True)
    return x


def scattered(x: jax.Array, rows: Sequence[str]) -> jax.Array:
    """The transpose of `gathered`: sums over the rows axes, each device keeping its own chunk."""
    for axis in rows:
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=0, tiled=True)
    return x


def own(x: jax.Array, rows: Sequence[str]) -> jax.Array:
    """This device's own chunk of what is equal on all along the rows axes."""
    if not rows:
        return x
    parts = x.reshape(jax.lax.axis_size(tuple(rows)), -1, *x.shape[1:])
    return jax.lax.dynamic_index_in_dim(parts, jax.lax.axis_index(tuple(rows)), keepdims=False)


def joined(x_cq: jax.Array, rows: Sequence[str]) -> jax.Array:
    """What every device found for this one's own chunk, side by side in the order of their ids."""
    if not rows:
        return x_cq
    sizes = [jax.lax.axis_size(axis) for axis in rows]
    parts = x_cq.reshape(*sizes, -1, x_cq.shape[1])
    for number, axis in enumerate(rows):
        parts = jax.lax.all_to_all(parts, axis, number, number, tiled=True)
    parts = jnp.moveaxis(parts, len(sizes), 0)
    return parts.reshape(parts.shape[0], -1)
