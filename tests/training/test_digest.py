"""Digests: the same on every mesh, other for any bit; and of each replica's own copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gemma_train.errors import FaultyHardware
from gemma_train.leaves import by_path, from_paths
from gemma_train.training.digest import by_replica, digest
from gemma_train.training.replay import check_replicas
from gemma_train.training.state import initial_state


def tree_on_mesh() -> dict:
    mesh, random = jax.sharding.get_mesh(), np.random.default_rng(0)

    def put(value, *spec):
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))

    return {
        "matrix": put(
            random.standard_normal((8, 8), np.float32), ("data_major", "data_minor"), "seq"
        ),
        "half": put(jnp.asarray(random.standard_normal(12), jnp.bfloat16)),
        "count": put(np.int32(3)),
    }


def test_every_mesh_gives_the_same_digest(mesh_of):
    found = set()
    for mesh in ((1, 1, 1), (2, 2, 2), (1, 8, 1), (8, 1, 1)):
        with mesh_of(*mesh):
            found.add(digest(tree_on_mesh()))
    assert len(found) == 1


def test_every_flipped_bit_and_every_two_values_exchanged_give_another(mesh_of):
    with mesh_of():
        tree = tree_on_mesh()
        found, random = [digest(tree)], np.random.default_rng(1)
        for _ in range(40):
            name = ("matrix", "half", "count")[random.integers(3)]
            changed = np.array(tree[name])
            bits = changed.reshape(-1).view(np.uint8)
            bits[random.integers(bits.size)] ^= 1 << random.integers(8)
            found.append(digest({**tree, name: jnp.asarray(changed)}))
        exchanged = np.array(tree["matrix"])[::-1].copy()
        found.append(digest({**tree, "matrix": jnp.asarray(exchanged)}))
    assert found.count(found[0]) == 1


def with_one_bit_flipped(leaf: jax.Array, device: jax.Device) -> jax.Array:
    """The same array, but for one bit of one device's copy."""
    parts = []
    for shard in leaf.addressable_shards:
        part = np.array(shard.data)
        if shard.device == device:
            part.reshape(-1).view(np.uint8)[1] ^= 16
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


@pytest.mark.parametrize("name", ["matrix", "half", "count"])
@pytest.mark.parametrize("mesh", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_one_bit_of_one_copy_tells_its_replica_apart(mesh_of, mesh, name):
    with mesh_of(*mesh):
        tree, devices = tree_on_mesh(), jax.sharding.get_mesh().devices
        assert len(by_replica(tree)) == mesh[0]
        assert len(set(by_replica(tree))) == 1
        flipped = {**tree, name: with_one_bit_flipped(tree[name], devices[1].flat[0])}
        one, other, *rest = by_replica(flipped)
        assert other not in (one, *rest)
        assert set(rest) <= {one}


def test_a_state_in_which_replicas_differ_is_refused_naming_one(mesh_of, run_on):
    with mesh_of(4, 2, 1):
        state, devices = initial_state(run_on(4, 2, shallow=True)), jax.sharding.get_mesh().devices
        check_replicas(state, 7)
        leaves = by_path(state)
        path = "model/pattern/0/feed_forward/down"
        path = path if path in leaves else next(p for p in leaves if p.endswith("down"))
        leaves[path] = with_one_bit_flipped(leaves[path], devices[2].flat[1])
        with pytest.raises(FaultyHardware, match="after step 7 replica 2 of 4"):
            check_replicas(from_paths(leaves, state), 7)


@pytest.mark.parametrize("replica", [0, 1])
def test_of_two_replicas_none_is_blamed(mesh_of, replica):
    with mesh_of(2, 2, 1):
        tree, devices = tree_on_mesh(), jax.sharding.get_mesh().devices
        tree["count"] = with_one_bit_flipped(tree["count"], devices[replica].flat[0])
        with pytest.raises(FaultyHardware, match="after step 7 one of two replicas is wrong"):
            check_replicas(tree, 7)
