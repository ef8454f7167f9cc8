"""Packing of small leaves: fewer arrays, every bit again, and tables that cannot be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from gemma_train.checkpoints.packing import LARGEST, PLACES, Packed, pack
from gemma_train.conversion import orbax_arrays
from gemma_train.errors import UserError

ROWS, SPLIT = PartitionSpec(("data_major", "data_minor")), PartitionSpec(None, "seq")
SMALL = {"model/scale", "moments/split", "moments/half", "step"}


def some_leaves() -> dict[str, jax.Array]:
    """Two dtypes and a number without axes, split and not; one of them too large to be packed."""
    mesh, random = jax.sharding.get_mesh(), np.random.default_rng(0)

    def put(shape, dtype, spec=ROWS):
        values = jnp.asarray(random.standard_normal(shape) * 100, dtype)
        return jax.device_put(values, NamedSharding(mesh, spec))

    return {
        "model/large": put((8, LARGEST // 32 + 8), np.float32),
        "model/scale": put((12,), np.float32, PartitionSpec()),
        "moments/split": put((8, 6), np.float32),
        "moments/half": put((3, 4), jnp.bfloat16, SPLIT),
        "step": put((), np.int32, PartitionSpec()),
    }


def placed_as(leaves):
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in leaves.items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape), name
        assert np.asarray(found[name]).tobytes() == np.asarray(leaf).tobytes(), name
        if isinstance(found[name], jax.Array):
            assert found[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name


@pytest.fixture
def saved(mesh_of, tmp_path):
    """A checkpoint of `some_leaves`, and they."""
    with mesh_of(2, 2, 2):
        leaves = some_leaves()
        arrays, places = pack(leaves)
        folder = epath.Path(tmp_path / "made")
        ocp.save_checkpointables(folder, {"state": arrays}, custom_metadata={PLACES: places})
        yield folder, leaves


def test_small_leaves_are_an_array_a_dtype_and_large_ones_stay_as_they_are(mesh_of):
    with mesh_of(2, 2, 2):
        leaves = some_leaves()
        arrays, places = pack(leaves)
    packed = {"packed/float32", "packed/bfloat16", "packed/int32"}
    assert arrays.keys() == {"model/large"} | packed and places.keys() == SMALL
    assert arrays["model/large"] is leaves["model/large"]
    assert arrays["packed/float32"].shape == (12 + 8 * 6,)
    assert all(arrays[name].sharding.is_fully_replicated for name in packed)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (8, 1, 1), (1, 2, 4)], ids=str)
def test_what_was_packed_on_one_mesh_comes_back_bit_for_bit_on_another(mesh, mesh_of, saved):
    folder, _ = saved
    with mesh_of(*mesh):
        expected = some_leaves()
        assert_same(orbax_arrays.load(folder, placed_as(expected)), expected)


def test_leaves_are_found_by_name_one_by_one_and_cast_where_asked(saved):
    folder, leaves = saved
    stored = orbax_arrays.stored(folder)
    assert_same({name: tensor.read() for name, tensor in stored.items()}, leaves)
    wanted = placed_as({"moments/split": leaves["moments/split"].astype(jnp.bfloat16)})
    found = orbax_arrays.load(folder, wanted)
    assert_same(found, {"moments/split": leaves["moments/split"].astype(jnp.bfloat16)})


def test_a_leaf_of_another_shape_is_refused(saved):
    folder, leaves = saved
    wanted = placed_as({"moments/split": leaves["moments/split"].T})
    with pytest.raises(UserError, match=r"'moments/split' has shape \(8, 6\), not \(6, 8\)"):
        orbax_arrays.load(folder, wanted)


@pytest.mark.parametrize(
    "table",
    [
        7,
        {"step": 7},
        {"step": {"array": "packed/int32", "begin": -1, "shape": []}},
        {"step": {"array": "packed/int32", "begin": 1, "shape": []}},
        {"step": {"array": "packed/int32", "begin": 0, "shape": [2**62, 2**62]}},
        {"step": {"array": "packed/int64", "begin": 0, "shape": []}},
        {"step": {"array": "model/large", "begin": 0, "shape": []}},
        {"step": {"array": "packed/int32", "begin": 0, "shape": [0, 2**62]}},
        {"step": {"array": "packed/int32", "begin": 0, "shape": [1] * 70}},
    ],
)
def test_a_table_that_cannot_be_is_one_clear_line(table, saved):
    file = saved[0] / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    metadata["custom_metadata"][PLACES] = table
    file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"made cannot be read: (its table of|'step' is not in)"):
        orbax_arrays.stored(saved[0])


def test_a_checkpoint_without_a_table_has_nothing_packed():
    assert Packed.told(None, {}).places == Packed.told({"position": {}}, {}).places == {}
