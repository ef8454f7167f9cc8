"""Small leaves packed into one array a dtype, for Orbax takes its time by the array.

    packed/float32   the leaves of at most 1 MiB, end to end: norms' scales, their moments, ...

Where each lies is told in the checkpoint's metadata. What is packed is replicated on the way.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import PartitionSpec, auto_axes

from gemma_train.sidecar import Count, Name, Positive

LARGEST = 1 << 20  # bytes of a leaf that is packed
PLACES = "packed_leaves"  # the metadata's key
_FOLDER = "packed/"  # what names of packed arrays begin with

Leaves = dict[str, Any]  # arrays, or what tells of them, by name


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a leaf lies: in which array, and from which element on."""

    array: Name
    begin: Count
    shape: Annotated[tuple[Positive, ...], msgspec.Meta(max_length=32)]

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape)

    def of(self, packed: np.ndarray) -> np.ndarray:
        """The leaf."""
        return packed[self.begin : self.end].reshape(self.shape)


def pack(leaves: Leaves) -> tuple[Leaves, dict[str, Any]]:
    """The same with the small ones packed, on the mesh in force; and their places, for JSON."""
    small, places = defaultdict[str, Leaves](dict), {}
    for name, leaf in leaves.items():
        if 0 < leaf.nbytes <= LARGEST:
            array = f"{_FOLDER}{leaf.dtype}"
            begin = sum(other.size for other in small[array].values())
            small[array][name] = leaf
            places[name] = Place(array=array, begin=begin, shape=leaf.shape)
    large = {name: leaf for name, leaf in leaves.items() if name not in places}
    assert not large.keys() & small.keys(), "a leaf is called as packed ones are"
    packed = {array: _end_to_end(list(here.values())) for array, here in small.items()}
    return large | packed, {name: asdict(place) for name, place in places.items()}


@dataclass(frozen=True)
class Packed:
    """Where a checkpoint's packed leaves lie; there are none in what others wrote."""

    places: Mapping[str, Place]
    described: Mapping[str, Any]  # its arrays: their shapes and dtypes

    @classmethod
    def told(cls, metadata: Mapping[str, Any] | None, described: Mapping[str, Any]) -> Self:
        """As the checkpoint's metadata tell. Raises `ValueError` where that cannot be."""
        try:
            places = msgspec.convert((metadata or {}).get(PLACES, {}), dict[str, Place])
        except msgspec.ValidationError as error:
            raise ValueError(f"its table of packed leaves is damaged ({error})") from None
        for name, place in places.items():
            array = described.get(place.array)
            has = array.shape[0] if array is not None and len(array.shape) == 1 else 0
            if place.end > has or not place.array.startswith(_FOLDER):
                raise ValueError(f"{name!r} is not in {place.array!r}, where it is said to lie")
        return cls(places, described)

    def arrays(self, wanted: Leaves) -> Leaves:
        """What to load for these leaves: themselves, or what they are packed in."""
        named = {self.places[name].array for name in wanted if name in self.places}
        return {name: leaf for name, leaf in wanted.items() if name not in self.places} | {
            name: np.empty(self.described[name].shape, self.described[name].dtype) for name in named
        }

    def unpack(self, loaded: Leaves, wanted: Leaves) -> Leaves:
        """The wanted leaves, placed and cast as they say, from what `arrays` asked for."""

        def leaf(name: str, like: Any) -> jax.Array:
            if name not in self.places:
                return loaded[name]
            place = self.places[name]
            if place.shape != like.shape:
                raise ValueError(f"{name!r} has shape {place.shape}, not {like.shape}")
            whole = place.of(loaded[place.array])
            return jax.make_array_from_callback(
                like.shape, like.sharding, lambda index: whole[index].astype(like.dtype)
            )

        return {name: leaf(name, like) for name, like in wanted.items()}


@jax.jit
def _end_to_end(leaves: list[jax.Array]) -> jax.Array:
    """[sum of their sizes], on every device."""
    joined: Any = auto_axes(
        lambda leaves: jnp.concatenate([leaf.reshape(-1) for leaf in leaves]),
        out_sharding=PartitionSpec(),
    )
    return joined(leaves)
