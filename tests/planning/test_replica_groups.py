"""Every form in which a program writes groups of devices, and the mesh axes they lie along."""

import pytest

from gemma_train.planning.replica_groups import axes_of, group_of, slices_of

MESH = "mesh['replica'=1,'data_major'=4,'data_minor'=2,'seq'=2]"


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}", (0, 4, 8, 12)),
        ("replica_groups={}", tuple(range(16))),
        ("replica_groups=[4,4]<=[16]", (0, 1, 2, 3)),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", (0, 4, 8, 12)),
        ("replica_groups=[8,2]<=[2,4,2]T(1,2,0)", (0, 8)),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", (0, 2, 4, 6)),
        (f"replica_groups={MESH} {{'data_minor'}}", (0, 2)),
        (f"replica_groups={MESH} {{'replica','data_major','seq'}}", (0, 1, 4, 5, 8, 9, 12, 13)),
        (f"replica_groups={MESH} {{'seq','data_major'}}", (0, 4, 8, 12, 1, 5, 9, 13)),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(1)4}", (0, 4, 8, 12)),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(4)2}", (0, 2)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4], device_ids=([4,4]T(1,0)) {'axis_1'}", None),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}", (0, 2)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{4,5},{5,6},{6,7}}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,0},{1,4},{2,8},{4,1},{5,5},{8,2}}", (1, 4)),
    ],
)
def test_a_group_is_read_in_every_form(written, group):
    line = f"(%p), channel_id=1, {written}, use_global_device_ids=true, to_apply=%add"
    assert group_of(line, 16) == (group or (0, 4, 8, 12))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="no replica groups are known"):
        group_of("(%p), replica_groups=everyone", 16)


@pytest.mark.parametrize(
    ("target", "slices"),
    [
        ('"{1,2,3,4}x{0:15}"', (1, 2, 3, 4)),
        ("{{100000,200000},{100001,200001},{300000,400000}}", (1, 2)),
        ("{{100000,100004,200000,200004},{100001,100005,200001,200005}}", (1, 2)),
        ("{{100000->200000},{200000->300000},{300000->100000},{100001->200001}}", (1, 2, 3)),
    ],
)
def test_the_slices_of_a_transfer_are_read_in_every_form(target, slices):
    attributes = (
        f'frontend_attributes={{_xla_host_transfer_rendezvous="psum.7_0",'
        f'_xla_megascale_target={target},_xla_megascale_transfer_type="ALL_REDUCE"}}'
    )
    assert slices_of(attributes) == slices


@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ((0, 4, 8, 12), ("data_major",)),
        ((0, 2), ("data_minor",)),
        ((5, 4), ("seq",)),
        ((0, 1, 2, 3), ("data_minor", "seq")),
        (tuple(range(16)), ("data_major", "data_minor", "seq")),
        ((0, 3), ()),  # a diagonal
        ((0, 4), ()),  # half an axis
    ],
)
def test_axes_are_those_that_the_group_fills(group, axes):
    mesh = {"replica": 1, "data_major": 4, "data_minor": 2, "seq": 2}
    assert axes_of(group, mesh, 16) == axes


def test_slices_lie_along_the_first_axis():
    mesh = {"replica": 4, "data_major": 4, "data_minor": 2, "seq": 1}
    assert axes_of((0, 8), mesh, 16) == ("replica",), "half of it lies within each of two slices"
    assert axes_of((0, 2, 4, 6), mesh, 16) == ("data_major",)


def test_without_a_mesh_that_fits_no_axes_are_named():
    assert axes_of((0, 1), {}, 16) == ()
    assert axes_of((0, 1), {"replica": 1, "data_major": 24, "seq": 1}, 16) == ()


def test_devices_that_send_to_each_other_need_not_fill_an_axis():
    mesh = {"replica": 1, "data_major": 4, "seq": 4}
    assert axes_of((1, 2), mesh, 16) == ()
    assert axes_of((1, 2), mesh, 16, whole=False) == ("seq",)
