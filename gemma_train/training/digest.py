"""A state in 64 bits: the same on every mesh, and other for any one bit flipped.

Integer sums that wrap have no order, so that neither mesh nor compiler changes them. There is a
program a shape, not one for all leaves: a fraction of the time to compile.
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


def digest(tree: Any) -> str:
    """Sixteen hexadecimal digits of all leaves' bits, with the mesh in force. Waits for them."""
    found = [_of_leaf(leaf, number) for number, leaf in enumerate(jax.tree.leaves(tree))]
    return _words(np.sum([np.asarray(one) for one in found], axis=0, dtype=np.uint32))


def by_replica(tree: Any) -> list[str]:
    """The same of what each replica of the mesh in force holds: equal where their copies are.

    Not equal to `digest`, nor between meshes.
    """
    found = [_of_replicas(leaf, number) for number, leaf in enumerate(jax.tree.leaves(tree))]
    return [*map(_words, np.sum([np.asarray(one) for one in found], axis=0, dtype=np.uint32))]


def _words(halves: np.ndarray) -> str:
    return "".join(f"{int(half):08x}" for half in halves)


@jax.jit
def _of_leaf(leaf: jax.Array, number: int) -> Any:
    """uint32 [2]."""
    sums: Any = auto_axes(_sums, out_sharding=PartitionSpec())
    return sums(leaf, number)


@jax.jit
def _of_replicas(leaf: jax.Array, number: int) -> jax.Array:
    """uint32 [replicas, 2]."""
    specs = jax.typeof(leaf).sharding.spec, PartitionSpec()

    @partial(jax.shard_map, in_specs=specs, out_specs=PartitionSpec("replica"), check_vma=False)
    def of_replica(leaf: jax.Array, number: jax.Array) -> jax.Array:
        own = _sums(leaf, number) * (2 * jax.lax.axis_index(SPLIT_AXES).astype(jnp.uint32) + 1)
        return jax.lax.psum(own, SPLIT_AXES)[None]

    return jax.sharding.reshard(of_replica(leaf, number), PartitionSpec())


def _sums(leaf: jax.Array, number: jax.Array) -> jax.Array:
    """uint32 [2]: all bits, each number's times what its place and the leaf's number give."""
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.full(leaf.shape, number + 1, jnp.uint32)
    for axis in range(leaf.ndim):
        at = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place = place * jnp.uint32(0x01000193) + at
    weights = [_mixed(place * jnp.uint32(odd)) | 1 for odd in _ODD]
    return jnp.stack([jnp.sum(bits * weight, dtype=jnp.uint32) for weight in weights])


def _mixed(x: jax.Array) -> jax.Array:
    """A number whose bits all depend on all bits of `x`."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
