"""ZeRO-3 on an Explicit mesh: which dimension of a weight is split over which axis, and its gather.

Parameters, gradients and Adam's moments live split over (data, seq). A layer's weights are gathered
in the compute dtype where they are used, one mesh axis a hop; the transpose of that gather scatters
the gradient hop by hop. What a matrix is not split over (replica) is declared `reduced` by `share`
ahead of the scan over layers, so that its sum runs on the shard, outside that scan.
"""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import SPLIT_AXES

# Dimensions that are never split: the scan over layers slices the first.
WHOLE = "l"


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


def summed(gradient: jax.Array) -> jax.Array:
    """The transpose of `share`: a shared weight's gradient, summed over what does not split it."""
    return reshard(gradient, PartitionSpec(*jax.typeof(gradient).sharding.spec.partitions))


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
    hops = [
        (axis, number)
        for axis in reversed(_dealt(mesh.shape))
        for number, axes in enumerate(dimensions)
        if axis in axes and number != keep
    ]
    for axis, number in hops:
        last = (axis, number) == hops[-1]
        weight = _hop(weight, axis, number) if last else _hop_in_front(weight, axis, number)
    return weight


def _hop(weight: jax.Array, axis: str, number: int) -> jax.Array:
    """Make the dimension whole over the innermost axis that splits it."""
    dimensions, reduced = axes_of(weight), jax.typeof(weight).sharding.spec.reduced
    assert dimensions[number].pop() == axis
    return reshard(weight, _spec(dimensions, {*reduced, axis}))


def _hop_in_front(weight: jax.Array, axis: str, number: int) -> jax.Array:
    """`_hop` with the devices of the axis as a dimension of its own, moved to the front.

    On TPU the transpose of this form is a reduce-scatter. A dimension within the two that are tiled
    is one only where its part is a multiple of 256: else XLA sums all and throws most away.
    """
    mesh, dimensions = jax.sharding.get_abstract_mesh(), axes_of(weight)
    outer = dimensions[number][:-1]
    before, devices = math.prod(mesh.shape[name] for name in outer), mesh.shape[axis]
    rest = weight.shape[number] // (before * devices)
    shape = (*weight.shape[:number], before, devices, rest, *weight.shape[number + 1 :])
    parts = [*dimensions[:number], outer, [axis], [], *dimensions[number + 1 :]]
    apart = _reshaped(weight, shape, parts)
    in_front = _hop(jnp.moveaxis(apart, number + 1, 0), axis, 0)
    return _reshaped(
        jnp.moveaxis(in_front, 0, number + 1),
        weight.shape,
        [*dimensions[:number], outer, *dimensions[number + 1 :]],
    )


def _reshaped(weight: jax.Array, shape: tuple[int, ...], dimensions: list[list[str]]) -> jax.Array:
    reduced = jax.typeof(weight).sharding.spec.reduced
    return jax.lax.reshape(weight, shape, out_sharding=_spec(dimensions, reduced))


def whole(vector: jax.Array) -> jax.Array:
    """A norm's scale (or a stack of them) on every device; used in elementwise products."""
    return reshard(vector, PartitionSpec(*(None for _ in vector.shape)))


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
