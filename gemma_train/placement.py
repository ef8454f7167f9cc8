"""What goes where on the mesh: a process's rows of a batch, and arrays that are not made yet."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_train.axes import activation
from gemma_train.data.example import Batch, padding


def needed_rows(mesh: Mesh, batch_rows: int) -> list[int]:
    """The rows of the global batch that this process's devices hold a part of, in order.

    Read off the sharding, so that it holds for one process, many, and Pathways.
    """
    places = NamedSharding(mesh, activation("b")).addressable_devices_indices_map((batch_rows,))
    return sorted(
        {row for index in places.values() if index for row in range(batch_rows)[index[0]]}
    )


def place(batch: Batch, mesh: Mesh, batch_rows: int) -> Batch:
    """The global batch of [b, t] arrays from this process's rows (as `needed_rows` orders them)."""
    local = {row: index for index, row in enumerate(needed_rows(mesh, batch_rows))}
    sharding = NamedSharding(mesh, activation("bt"))

    def put(x_bt: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, slice]) -> np.ndarray:
            return x_bt[[local[row] for row in range(batch_rows)[index[0]]], index[1]]

        return jax.make_array_from_callback((batch_rows, x_bt.shape[1]), sharding, part)

    return jax.tree.map(put, batch)


def abstract_batch(mesh: Mesh, batch_rows: int, length: int) -> Batch:
    """Shapes, dtypes and shardings of a batch that `place` would put on the mesh."""
    sharding = NamedSharding(mesh, activation("bt"))

    def like(x_bt: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_rows, length), x_bt.dtype, sharding=sharding)

    return jax.tree.map(like, padding(1, 1))


def abstract[Tree](make: Callable[[], Tree]) -> Tree:
    """Shapes, dtypes and shardings on the mesh in force of what `make` makes, nothing allocated."""
    mesh = jax.sharding.get_mesh()

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
        return leaf.update(sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(make))
