"""Activations times a weight: an einsum that on one device is one plain matrix product.

XLA's CPU backend turns the weight's gradient of a three-dimensional einsum into a product with a
materialised transpose; over flattened rows it is one product, which made a sketch of the step in
`benchmarks/cpu_step.py` 1.24 times as fast. Split over a mesh, rows cannot be flattened without
moving data.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemma_train.zero3 import axes_of


def contract(letters: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`jnp.einsum(letters, x, weight)` where x ends and the weight begins with what is summed.

    As in `contract("btd,dnh->btnh", x_btd, query_dnh)`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        return jnp.einsum(letters, x, weight)
    summed = len(_shared(letters))
    rows, depth = x.shape[: x.ndim - summed], math.prod(weight.shape[:summed])
    axes = axes_of(x)[: len(rows)]
    flat_spec = PartitionSpec(tuple(axis for split in axes for axis in split), None)
    row_spec = PartitionSpec(*map(tuple, axes), *(None,) * (weight.ndim - summed))
    flat = jax.lax.reshape(x, (math.prod(rows), depth), out_sharding=flat_spec)
    product = flat @ weight.reshape(depth, -1)
    return jax.lax.reshape(product, (*rows, *weight.shape[summed:]), out_sharding=row_spec)


def _shared(letters: str) -> str:
    inputs, _ = letters.split("->")
    x, weight = inputs.split(",")
    return "".join(letter for letter in x if letter in weight)
