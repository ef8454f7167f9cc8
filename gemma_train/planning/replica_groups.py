"""Which devices take part in a collective together, and along which axes of the mesh they lie.

A compiled program numbers the devices of one slice in the mesh's order, and writes groups of them
as a list, as an iota that is reshaped and transposed, or as axes of a mesh of its own. All groups
of a collective are alike: one stands for them. Between slices the runtime names its targets.
Grammar: XLA, `xla/hlo/ir/collective_device_list.h` and `replica_group.h`; of targets: observed.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

# An order of the devices: sizes of an array of all numbers in order, which is then transposed.
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_LISTED = re.compile(r"\breplica_groups=\{\{([\d,]*)\}")
_EVERYONE = re.compile(r"\breplica_groups=\{\}")
_IOTA = re.compile(r"\breplica_groups=\[\d+,(\d+)\]<=" + _ORDER)
_MESH = re.compile(
    r"\breplica_groups=@?mesh[\[<]([^\]>]+)[\]>]"
    r"(?:, device_ids=\((?:([\d,]+)|" + _ORDER + r")\))? ?\{([^}]*)\}"
)
_PAIRS = re.compile(r"\bsource_target_pairs=\{(\{[\d,{} ]*\})\}")
_PAIR = re.compile(r"\{(\d+),(\d+)\}")
_AXIS_SIZE = re.compile(r"'?([\w.\-]+)'?=(\d+)")
_AXIS = re.compile(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?")
_TARGET = re.compile(r'\b_xla_megascale_target="?\{?(.*?)"?,_xla_megascale')
# A device of a target is slice x 100,000 + its number in the slice; slices count from 1.
_SLICE_STRIDE = 100_000


def group_of(attributes: str, partitions: int) -> tuple[int, ...]:
    """The devices of one group of a collective within a slice, from the text of its attributes.

    Of a permutation: the largest set of devices that its pairs tie together. Raises `ValueError`
    for a form that is not known.
    """
    if found := _LISTED.search(attributes):
        return _numbers(found[1])
    if _EVERYONE.search(attributes):
        return tuple(range(partitions))
    if found := _IOTA.search(attributes):
        size, dimensions, transpose = found.groups()
        return tuple(_order(dimensions, transpose)[: int(size)].tolist())
    if found := _MESH.search(attributes):
        return _group_of_mesh(*found.groups())
    if found := _PAIRS.search(attributes):
        pairs = ((int(a), int(b)) for a, b in _PAIR.findall(found[1]))
        return _largest_tied(pairs)
    raise ValueError(f"no replica groups are known in {attributes[:200]!r}")


def slices_of(attributes: str) -> tuple[int, ...]:
    """The slices that a transfer between slices joins, of one group of its targets.

    Raises `ValueError` where no targets are named.
    """
    found = _TARGET.search(attributes)
    if not found:
        raise ValueError(f"no megascale target is known in {attributes[:200]!r}")
    target = found[1]
    if "->" in target:
        pairs = (_numbers(pair.replace("->", ",")) for pair in re.findall(r"\d+->\d+", target))
        return _largest_tied((a // _SLICE_STRIDE, b // _SLICE_STRIDE) for a, b in pairs)
    members = _numbers(target.strip("{").partition("}")[0])
    return tuple(sorted({device // _SLICE_STRIDE or device for device in members}))


def axes_of(
    group: tuple[int, ...], mesh_shape: Mapping[str, int], partitions: int, *, whole: bool = True
) -> tuple[str, ...]:
    """The mesh axes along which a group of a slice's devices lies.

    () where it does not fill them exactly, unless it need not be `whole`: a permutation ties only
    those together that send to each other. Slices lie along the mesh's first axis, as
    `gemma_train.mesh` lays them out.
    """
    names, sizes = list(mesh_shape), list(mesh_shape.values())
    slices = math.prod(sizes) // partitions
    if not sizes or not slices or sizes[0] % slices or max(group) >= partitions:
        return ()
    sizes[0] //= slices
    if math.prod(sizes) != partitions:
        return ()
    coordinates = np.unravel_index(np.array(group), sizes)
    varying = [axis for axis, at in enumerate(coordinates) if len(set(at.tolist())) > 1]
    if whole and math.prod(sizes[axis] for axis in varying) != len(set(group)):
        return ()
    return tuple(names[axis] for axis in varying)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _order(dimensions: str, transpose: str | None) -> np.ndarray:
    """All device numbers in the order that an iota, reshaped and transposed, names."""
    sizes = _numbers(dimensions)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(transpose) if transpose else None).ravel()


def _group_of_mesh(
    mesh: str, listed: str | None, dimensions: str | None, transpose: str | None, chosen: str
) -> tuple[int, ...]:
    """The first group along the chosen axes of the program's own mesh, or along parts of them."""
    sizes = {name: int(size) for name, size in _AXIS_SIZE.findall(mesh)}
    if listed:
        devices = np.array(_numbers(listed))
    elif dimensions:
        devices = _order(dimensions, transpose)
    else:
        devices = np.arange(math.prod(sizes.values()))
    devices = devices.reshape(tuple(sizes.values()))
    names, first = list(sizes), np.zeros(1, int)
    strides = [math.prod(devices.shape[axis + 1 :]) for axis in range(devices.ndim)]
    for name, before, part in _AXIS.findall(chosen):
        size = int(part or sizes[name])
        # An axis in parts is (before, part, after): the part's stride steps over what comes after.
        after = sizes[name] // (int(before or 1) * size)
        steps = np.arange(size) * after * strides[names.index(name)]
        first = (first[:, None] + steps).ravel()
    return tuple(devices.ravel()[first].tolist())


def _largest_tied(pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The largest set of numbers that pairs tie together, in order."""
    tied_to: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set[int]().union(*(tied_to.get(number, {number}) for number in pair))
        tied_to |= dict.fromkeys(joined, joined)
    return tuple(sorted(max(tied_to.values(), key=len)))
