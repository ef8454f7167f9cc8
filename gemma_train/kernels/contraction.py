"""Activations times a weight: an einsum that on one device is one plain matrix product.

XLA's CPU backend turns the weight's gradient of a three-dimensional einsum into a product with a
materialised transpose; over flattened rows it is one product, which made a sketch of the step in
`benchmarks/cpu_step.py` 1.24 times as fast. Split over a mesh, rows cannot be flattened without
moving data.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemma_train.zero3 import axes_of, gather


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


def contract_each(letters: str, x: jax.Array, weights: Sequence[jax.Array]) -> list[jax.Array]:
    """`contract(letters, x, weight)` with every weight, each as it is stored and shared.

    Weights are split alike and may differ in length along their second axis. On a mesh they are
    gathered as one array and multiplied as one: fewer and larger collectives, and one sum of the
    gradients by x instead of several arrays of its size. Not where that axis itself is split: to
    put split parts behind each other moves them between devices. As in
    `contract_each("btd,df->btf", x_btd, (gate_df, up_df))`.
    """
    if jax.sharding.get_abstract_mesh().size == 1 or axes_of(weights[0])[1]:
        return [contract(letters, x, gather(weight, x.dtype)) for weight in weights]
    joined = jnp.concatenate([weight.astype(x.dtype) for weight in weights], axis=1)
    product = jnp.einsum(letters, x, gather(joined, x.dtype))
    ends = list(accumulate(weight.shape[1] for weight in weights))
    return jnp.split(product, ends[:-1], axis=x.ndim - 1)


def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x times a vector along its last axis, in float32.

    On a mesh it is written as a contraction over an axis of 1, which XLA makes a product again:
    the gradient of a shared vector then stays unsummed, as a matrix's does, until it is wanted.
    """
    if jax.sharding.get_abstract_mesh().size == 1:
        return x * scale
    last = x.ndim - 1
    dimensions = (((last + 1,), (1,)), ((last,), (0,)))
    product = jax.lax.dot_general(
        x[..., None], scale[:, None], dimensions, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.moveaxis(product, 0, -1)


def _shared(letters: str) -> str:
    inputs, _ = letters.split("->")
    x, weight = inputs.split(",")
    return "".join(letter for letter in x if letter in weight)
