"""ZeRO-3 on an Explicit mesh: which dimension of a weight is split over which axis, and its gather.

Parameters, gradients and Adam's moments live split over (data, seq). A layer's weights are gathered
in the compute dtype where they are used, one mesh axis a hop; the transpose of that gather scatters
the gradient hop by hop. What a matrix is not split over (replica) is declared `reduced` by `share`
ahead of the scan over layers, so that its sum runs on the shard, outside that scan.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import SPLIT_AXES

# Dimensions that are never split: the scan over layers slices the first.
WHOLE = "l"
LANES = 128  # numbers in a row of a TPU's tiles


def split(letters: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """The ruled sharding of a parameter: all axes split the model width d, of a table the largest.

    Axes are dealt out from the largest: to d while they divide it, of the table (v) only the first;
    otherwise to the longest other dimension that divides, and to d if none does. An axis that
    divides nothing leaves the weight whole over it. Rows of d stay whole lanes of the TPU's tiles.
    """
    axes = _dealt(axis_sizes)
    local = dict(zip(letters, shape, strict=True))
    dealt: dict[str, list[str]] = {letter: [] for letter in letters}
    for turn, axis in enumerate(axes):
        candidates = sorted(
            (letter for letter in letters if letter not in WHOLE),
            key=lambda letter: ((letter == "d") == (turn > 0 and "v" in letters), -local[letter]),
        )
        for letter in candidates:
            if local[letter] % axis_sizes[axis] == 0:
                local[letter] //= axis_sizes[axis]
                dealt[letter].append(axis)
                break
    return _spec([dealt[letter] for letter in letters])


def ruled_sharding(letters: str, shape: tuple[int, ...]) -> PartitionSpec | None:
    """`split` on the mesh in force; None where no mesh is set (counting parameters)."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else split(letters, shape, mesh.shape)


def share(weight: jax.Array) -> jax.Array:
    """Declare a weight equal over every axis that does not split it: ahead of its use."""
    mesh, spec = jax.sharding.get_abstract_mesh(), jax.typeof(weight).sharding.spec
    whole_over = set(mesh.axis_names) - {axis for axes in axes_of(weight) for axis in axes}
    return reshard(weight, PartitionSpec(*spec.partitions, reduced=frozenset(whole_over)))


def summed[Tree](gradients: Tree, parameters: Tree) -> Tree:
    """The gradients of shared weights, each summed, and split as its parameter is.

    Gradients of one type are summed as one array: fewer and larger messages between slices.
    """
    leaves, structure = jax.tree.flatten(gradients)
    specs = [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(parameters)]
    alike: dict[tuple, list[int]] = {}
    for number, leaf in enumerate(leaves):
        if jax.typeof(leaf).sharding.spec.unreduced:
            alike.setdefault((jax.typeof(leaf), specs[number]), []).append(number)
    for (_, spec), numbers in alike.items():
        together, split_at = stacked([leaves[number] for number in numbers])
        parts = list(spec.partitions)
        parts.insert(0, parts.pop(split_at))
        together = reshard(together, PartitionSpec(None, *parts))
        for place, number in enumerate(numbers):
            one = jax.lax.index_in_dim(together, place, keepdims=False)
            leaves[number] = jnp.moveaxis(one, 0, split_at)
    return jax.tree.unflatten(structure, leaves)


def no_gradient(weight: jax.Array) -> jax.Array:
    """Zeros of the type of a weight's gradient: for a shared weight, of one still to be summed."""
    spec = jax.typeof(weight).sharding.spec
    unsummed = PartitionSpec(*spec.partitions, unreduced=frozenset(spec.reduced))
    return jnp.zeros(weight.shape, weight.dtype, out_sharding=unsummed)


def gather(weight: jax.Array, dtype: jax.typing.DTypeLike, *, keep: int | None = None) -> jax.Array:
    """A shared weight, cast and made whole for a contraction, one mesh axis a hop, smallest first.

    The dimension numbered `keep` stays split.
    """
    mesh, dimensions = jax.sharding.get_abstract_mesh(), axes_of(weight)
    weight = weight.astype(dtype)
    for axis in reversed(_dealt(mesh.shape)):
        for number, axes in enumerate(dimensions):
            if axis in axes and number != keep:
                weight = _hop(weight, axis, number)
    return weight


def _hop(weight: jax.Array, axis: str, number: int) -> jax.Array:
    """Make a dimension whole over the innermost axis that splits it.

    The devices of the axis are made a dimension of their own, in front of the others: on TPU the
    transpose of that is a reduce-scatter. A dimension among the two that are tiled is scattered
    only where its part is a multiple of 256: else XLA sums all of it, and throws most away. For the
    same reason what lies behind it is made flat where another dimension stays split: XLA would
    put the devices back among the tiled two, next to the one that they come from.
    """
    mesh, dimensions = jax.sharding.get_abstract_mesh(), axes_of(weight)
    outer, devices = dimensions[number][:-1], mesh.shape[axis]
    before = [math.prod(mesh.shape[name] for name in outer)] if outer else []
    part = weight.shape[number] // math.prod([*before, devices])

    def with_in_place(lengths: Sequence, *these) -> list:
        return [*lengths[:number], *these, *lengths[number + 1 :]]

    apart = _reshaped(
        weight,
        with_in_place(weight.shape, *before, devices, part),
        with_in_place(dimensions, *([outer] if outer else []), [axis], []),
    )
    place = number + len(before)
    beside = [n for n, axes in enumerate(axes_of(apart)) if axes and n != place]
    flat = len(beside) == 1 and not outer and _part_size(apart) % LANES == 0
    moved = [place, *beside] if flat else [place]
    in_front = jnp.moveaxis(apart, moved, range(len(moved)))
    rows = _in_lanes(in_front) if flat else _rows_joined(in_front)
    spec, rest = jax.typeof(rows).sharding.spec, axes_of(rows)[1:]
    together = reshard(rows, _spec([[], *rest], {*spec.reduced, axis}))
    together = _reshaped(together, in_front.shape, [[], *axes_of(in_front)[1:]])
    return _reshaped(
        jnp.moveaxis(together, range(len(moved)), moved),
        weight.shape,
        with_in_place(dimensions, outer),
    )


def _part_size(weight: jax.Array) -> int:
    """Numbers of a weight on one device."""
    return math.prod(jax.typeof(weight).sharding.shard_shape(weight.shape))


def _in_lanes(weight: jax.Array) -> jax.Array:
    """The dimensions behind the first as rows of lanes; of these, only the second is split."""
    devices, axes = weight.shape[0], axes_of(weight)[:2]
    return _reshaped(weight, (devices, weight.size // devices // LANES, LANES), [*axes, []])


def _rows_joined(weight: jax.Array) -> jax.Array:
    """The dimensions between the first and the last, neighbours that are whole made one.

    On several slices XLA sums all of a gradient that has more, and throws most away.
    """
    dimensions, last = axes_of(weight), weight.ndim - 1
    lengths, axes = [weight.shape[0]], dimensions[:1]
    for number in range(1, weight.ndim):
        if 1 < number < last and not dimensions[number] and not axes[-1]:
            lengths[-1] *= weight.shape[number]
        else:
            lengths.append(weight.shape[number])
            axes.append(dimensions[number])
    return _reshaped(weight, lengths, axes)


def _reshaped(weight: jax.Array, shape: Sequence[int], dimensions: list[list[str]]) -> jax.Array:
    spec = jax.typeof(weight).sharding.spec
    parts = _spec(dimensions).partitions
    parts = PartitionSpec(*parts, reduced=spec.reduced, unreduced=spec.unreduced)
    return jax.lax.reshape(weight, tuple(shape), out_sharding=parts)


def stacked(weights: Sequence[jax.Array], axis: int = 0) -> tuple[jax.Array, int]:
    """Weights of one type, one after another along a new axis, the split dimension next to it.

    And where that dimension was among those from `axis` on. (Last, with few numbers on a device, it
    would fill a TPU's 128 lanes with padding.)
    """
    split_at = next((number for number, axes in enumerate(axes_of(weights[0])) if axes), axis)
    moved = [jnp.moveaxis(weight, split_at, axis) for weight in weights]

    def with_new(lengths: Sequence, one) -> list:
        return [*lengths[:axis], one, *lengths[axis:]]

    apart = [
        _reshaped(weight, with_new(weight.shape, 1), with_new(axes_of(weight), []))
        for weight in moved
    ]
    return jnp.concatenate(apart, axis), split_at - axis


def whole(vector: jax.Array) -> jax.Array:
    """A norm's scale (or a stack of them) on every device, and on a mesh shared: for `scaled`."""
    mesh = jax.sharding.get_abstract_mesh()
    shared = mesh.axis_names if mesh.size > 1 else ()
    return reshard(vector, PartitionSpec(*(None for _ in vector.shape), reduced=frozenset(shared)))


def axes_of(weight: jax.Array) -> list[list[str]]:
    """The mesh axes over which each dimension is split, outermost first."""
    entries = jax.typeof(weight).sharding.spec.partitions
    return [list(e) if isinstance(e, tuple) else [e] if e else [] for e in entries]


def _dealt(axis_sizes: Mapping[str, int]) -> list[str]:
    """The axes in the order in which they are dealt out: the largest first."""
    return sorted((a for a in SPLIT_AXES if axis_sizes[a] > 1), key=lambda a: -axis_sizes[a])


def _spec(dimensions: list[list[str]], reduced: Iterable[str] = ()) -> PartitionSpec:
    entries = (None if not d else d[0] if len(d) == 1 else tuple(d) for d in dimensions)
    return PartitionSpec(*entries, reduced=frozenset(reduced))
