"""A state in 64 bits: the same on every mesh, and other for any one bit flipped.

Integer sums that wrap have no order, so that neither mesh nor compiler changes them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, auto_axes

from gemma_train.axes import SPLIT_AXES

_ODD = (0x9E3779B1, 0x85EBCA6B)  # two sums, whose weights differ
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def _whole(tree: Any) -> Any:
    """uint32 [2]."""
    return auto_axes(_sums, out_sharding=PartitionSpec())(tree)


def digest(tree: Any) -> str:
    """Sixteen hexadecimal digits of all leaves' bits, with the mesh in force. Waits for them."""
    return "".join(f"{int(half):08x}" for half in np.asarray(_whole(tree)))


def by_replica(tree: Any) -> list[str]:
    """The same of what each replica of the mesh in force holds: equal where their copies are.

    Not equal to `digest`, nor between meshes.
    """
    return ["".join(f"{int(half):08x}" for half in row) for row in np.asarray(_by_replica(tree))]


@jax.jit
def _by_replica(tree: Any) -> jax.Array:
    """uint32 [replicas, 2]."""
    specs = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)

    @partial(jax.shard_map, in_specs=(specs,), out_specs=PartitionSpec("replica"), check_vma=False)
    def of_replica(tree: Any) -> jax.Array:
        own = _sums(tree) * (2 * jax.lax.axis_index(SPLIT_AXES).astype(jnp.uint32) + 1)
        return jax.lax.psum(own, SPLIT_AXES)[None]

    return jax.sharding.reshard(of_replica(tree), PartitionSpec())


def _sums(tree: Any) -> jax.Array:
    """uint32 [2]."""
    total = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
        place = jnp.full(leaf.shape, number + 1, jnp.uint32)
        for axis in range(leaf.ndim):
            at = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place = place * jnp.uint32(0x01000193) + at
        weights = [_mixed(place * jnp.uint32(odd)) | 1 for odd in _ODD]
        total += jnp.stack([jnp.sum(bits * weight, dtype=jnp.uint32) for weight in weights])
    return total


def _mixed(x: jax.Array) -> jax.Array:
    """A number whose bits all depend on all bits of `x`."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
