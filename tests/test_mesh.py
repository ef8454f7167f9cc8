"""The mesh: its axes, its refusals, and where devices of several slices stand."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from gemma_train.axes import MESH_AXES
from gemma_train.errors import UserError
from gemma_train.mesh import MeshConfig, make_mesh, start_runtime


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 1, 1, 1)),
        (MeshConfig(replica=6, data=256), (6, 16, 16, 1)),
        (MeshConfig(data=128), (1, 16, 8, 1)),
        (MeshConfig(data=7), (1, 7, 1, 1)),
        (MeshConfig(replica=2, data=16, seq=16), (2, 16, 1, 16)),
        (MeshConfig(replica=32, data=24, seq=8), (32, 24, 1, 8)),
    ],
)
def test_data_is_two_axes_only_where_seq_is_none(config, sizes):
    assert tuple(config.axis_sizes) == MESH_AXES
    assert tuple(config.axis_sizes.values()) == sizes
    assert np.prod(sizes) == config.devices == config.replica * config.data * config.seq


@pytest.mark.parametrize("axis", ["replica", "data", "seq"])
@pytest.mark.parametrize("size", [0, -1])
def test_an_axis_without_devices_is_refused(axis, size):
    with pytest.raises(UserError, match=rf"^mesh\.{axis} is {size}: it must be at least 1$"):
        MeshConfig(**{axis: size})


@pytest.mark.parametrize(("data", "product"), [(3, 6), (8, 16)])
def test_a_wrong_product_is_refused_with_every_number(data, product):
    with pytest.raises(UserError) as refusal:
        make_mesh(MeshConfig(data=data, seq=2))
    line = str(refusal.value)
    assert "\n" not in line
    assert f"replica 1 x data {data} x seq 2 = {product} devices" in line
    assert "this runtime has 8" in line


def test_the_mesh_is_explicit_and_holds_every_device_once():
    mesh = make_mesh(MeshConfig(replica=2, data=2, seq=2))
    assert mesh.axis_names == MESH_AXES
    assert mesh.axis_types == (AxisType.Explicit,) * 4
    assert mesh.devices.shape == (2, 2, 1, 2)
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices())


def test_one_process_needs_no_start():
    start_runtime(MeshConfig())


@dataclass(frozen=True)
class SliceDevice:
    """What the layout reads of a device in one of several slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def slices(count: int, each: int) -> list[SliceDevice]:
    # Shuffled, so that the layout cannot be the order in which they come.
    made = [SliceDevice(id=i, slice_index=i // each) for i in range(count * each)]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


def layout(config: MeshConfig, devices: list) -> np.ndarray:
    # A Mesh refuses devices that are not JAX's own: its layout is what is looked at.
    from gemma_train.mesh import _lay_out

    return _lay_out(tuple(config.axis_sizes.values()), devices)


def test_only_replica_crosses_from_slice_to_slice():
    placed = layout(MeshConfig(replica=4, data=2, seq=2), slices(2, 8))
    slice_of = np.vectorize(lambda device: device.slice_index)(placed)
    assert slice_of.shape == (4, 2, 1, 2)
    assert (slice_of == slice_of[:, :1, :1, :1]).all()
    assert sorted(slice_of[:, 0, 0, 0]) == [0, 0, 1, 1]
    assert len({device.id for device in placed.flat}) == 16


def test_slices_that_replica_does_not_part_are_refused():
    message = r"^mesh\.replica is 2 over 4 slices: it must be a multiple of 4$"
    with pytest.raises(UserError, match=message):
        layout(MeshConfig(replica=2, data=8), slices(4, 4))
