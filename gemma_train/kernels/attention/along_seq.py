"""What a device is given of its neighbours along the mesh axis seq, within `shard_map`.

Shards lie one after another. A local layer takes a halo of keys from beside its own. A global layer
gathers every key; there the last shard has the most to look at, so each shard swaps the second half
of its queries with its mirror image: halves 2i and 2m - 1 - 2i of 2m then lie together, and see as
many keys as those of any other shard.
"""

import jax
import jax.numpy as jnp


def shards() -> int:
    """How many devices share out a sequence."""
    return jax.sharding.get_abstract_mesh().shape["seq"]


def with_halo(x: jax.Array, *, left: int = 0, right: int = 0) -> jax.Array:
    """[b, s / seq, ...] -> [b, left + s / seq + right, ...]: what lies around one's own.

    Zeros where the row ends. A halo longer than a shard comes from several neighbours.
    """
    own, last = x.shape[1], shards() - 1
    pieces = [x]
    for hop in range(1, min(last, -(-left // own)) + 1):
        part = x[:, -min(own, left - (hop - 1) * own) :]
        pieces.insert(0, _sent(part, [(shard, shard + hop) for shard in range(last + 1 - hop)]))
    for hop in range(1, min(last, -(-right // own)) + 1):
        part = x[:, : min(own, right - (hop - 1) * own)]
        pieces.append(_sent(part, [(shard + hop, shard) for shard in range(last + 1 - hop)]))
    return jnp.concatenate(pieces, axis=1) if len(pieces) > 1 else x


def halo(length: int, wanted: int) -> int:
    """How many keys of so many `wanted` beside its `length` a shard can be given at all."""
    return min(wanted, (shards() - 1) * length)


def everywhere(x: jax.Array) -> jax.Array:
    """[b, s / seq, ...] -> [b, s, ...]. Untiled: its transpose is then a reduce-scatter on TPU."""
    if shards() == 1:
        return x
    apart = jax.lax.all_gather(x, "seq", axis=1, tiled=False)
    return apart.reshape(x.shape[0], -1, *x.shape[2:])


def mirrored(x: jax.Array) -> jax.Array:
    """[b, t / seq, ...] with its second half swapped with the mirror shard's: its own inverse."""
    first, second = jnp.split(x, 2, axis=1)
    last = shards() - 1
    return jnp.concatenate([first, _sent(second, [(i, last - i) for i in range(last + 1)])], axis=1)


def mirrored_halves(shard: int, shards: int) -> tuple[int, int]:
    """The two that `mirrored` puts on a shard, by their numbers among the row's 2 * shards."""
    return 2 * shard, 2 * (shards - 1 - shard) + 1


def _sent(x: jax.Array, pairs: list[tuple[int, int]]) -> jax.Array:
    return jax.lax.ppermute(x, "seq", pairs)
