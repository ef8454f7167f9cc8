"""The devices that the TPU compiler makes of slices."""

import pytest

from gemma_train.mesh import MeshConfig, make_mesh
from gemma_train.planning.slices import Slices
from gemma_train.planning.topology import NoCompiler, devices


@pytest.mark.parametrize(
    ("name", "count", "kind", "mesh"),
    [
        ("v5e:4x4", 2, "TPU v5 lite", MeshConfig(replica=2, data=4, seq=4)),
        ("v5e:1x1", 1, "TPU v5 lite", MeshConfig()),
        ("v4:4x4x8", 1, "TPU v4", MeshConfig(replica=2, data=16, seq=4)),
        ("v5p:4x8x12", 1, "TPU v5", MeshConfig(replica=2, data=24, seq=8)),
    ],
)
def test_a_chip_is_a_device_and_the_mesh_lies_on_them(name, count, kind, mesh):
    slices = Slices.named(name, count)
    try:
        found = devices(slices)
    except NoCompiler as error:
        pytest.skip(str(error))
    assert len(found) == slices.chips
    assert found[0].device_kind == kind == slices.chip.device_kind
    laid = make_mesh(mesh, found)
    assert dict(laid.shape) == mesh.axis_sizes
    if count > 1:  # slices lie along replica
        for number, half in enumerate(laid.devices):
            assert {device.slice_index for device in half.flat} == {number}


def test_without_libtpu_the_reason_is_told(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("JAX TPU support not installed\nsee elsewhere")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(NoCompiler, match="^JAX TPU support not installed$"):
        devices(Slices.named("v5e:4x4"))
