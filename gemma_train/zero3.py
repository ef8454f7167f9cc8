"""ZeRO-3 on an Explicit mesh: which dimension of a weight is split over which axis, and its gather.

Parameters, gradients and Adam's moments live split over (data, seq). A layer's weights are gathered
in the compute dtype where they are used, one mesh axis a hop; the transpose of that gather scatters
the gradient hop by hop. What a matrix is not split over (replica) is declared `reduced` by `share`
ahead of the scan over layers, so that its sum runs on the shard, outside that scan.
"""

from collections.abc import Iterable, Mapping

import jax
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import SPLIT_AXES

# Dimensions that are never split: the scan over layers slices the first.
WHOLE = "l"


def split(letters: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """The ruled sharding of a parameter: the larger axis splits the model width, the rest others.

    Axes are dealt out from the largest: the first goes to d if d divides, each further one to the
    longest other dimension that divides, and to d if none does. An axis that divides nothing
    leaves the weight whole over it.
    """
    axes = _dealt(axis_sizes)
    local = dict(zip(letters, shape, strict=True))
    dealt: dict[str, list[str]] = {letter: [] for letter in letters}
    for turn, axis in enumerate(axes):
        candidates = sorted(
            (letter for letter in letters if letter not in WHOLE),
            key=lambda letter: ((letter == "d") != (turn == 0), -local[letter]),
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


def gather(weight: jax.Array, dtype: jax.typing.DTypeLike, *, keep: int | None = None) -> jax.Array:
    """A shared weight, cast and made whole for a contraction, one mesh axis a hop, smallest first.

    The dimension numbered `keep` stays split.
    """
    mesh, spec = jax.sharding.get_abstract_mesh(), jax.typeof(weight).sharding.spec
    dimensions, reduced = axes_of(weight), set(spec.reduced)
    weight = weight.astype(dtype)
    for axis in reversed(_dealt(mesh.shape)):
        for number, axes in enumerate(dimensions):
            if axis in axes and number != keep:
                axes.remove(axis)
                reduced.add(axis)
                weight = reshard(weight, _spec(dimensions, reduced))
    return weight


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
