"""What goes where on the mesh: a process's rows of a batch, and arrays that are not made yet."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_train.axes import activation
from gemma_train.data.example import LETTERS, Batch, Layout


def needed_rows(mesh: Mesh, batch_rows: int) -> list[int]:
    """The rows of the global batch that this process's devices hold a part of, in order.

    Read off the sharding, so that it holds for one process, many, and Pathways.
    """
    places = NamedSharding(mesh, activation("b")).addressable_devices_indices_map((batch_rows,))
    return sorted(
        {row for index in places.values() if index for row in range(batch_rows)[index[0]]}
    )


def place(batch: Batch, mesh: Mesh, batch_rows: int) -> Batch:
    """The global batch from this process's rows (as `needed_rows` orders them)."""
    local = {row: index for index, row in enumerate(needed_rows(mesh, batch_rows))}

    def put(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return x[[local[row] for row in range(batch_rows)[index[0]]], index[1]]

        shape = (batch_rows, *x.shape[1:])
        return jax.make_array_from_callback(shape, _sharding(mesh, x.ndim), part)

    return jax.tree.map(put, batch)


def abstract_batch(mesh: Mesh, batch_rows: int, layout: Layout) -> Batch:
    """Shapes, dtypes and shardings of a batch that `place` would put on the mesh."""
    arrays = layout.arrays(batch_rows).items()
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(mesh, len(shape)))
            for name, (shape, dtype) in arrays
        }
    )


def _sharding(mesh: Mesh, axes: int) -> NamedSharding:
    return NamedSharding(mesh, activation(LETTERS[axes]))


def abstract[Tree](make: Callable[[], Tree]) -> Tree:
    """Shapes, dtypes and shardings on the mesh in force of what `make` makes, nothing allocated."""
    mesh = jax.sharding.get_mesh()

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
        return leaf.update(sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(make))
