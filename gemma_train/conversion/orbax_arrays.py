"""Arrays in Orbax checkpoints, one at a time: names joined by '/', whatever the nesting."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from gemma_train.conversion.tensors import Tensor, Tensors, parcels
from gemma_train.errors import UserError
from gemma_train.metrics.byte_progress import Advance

_PARCEL_BYTES = 1 << 28

# What orbax logs it also raises; of a damaged checkpoint asyncio tells once for every array.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def stored(checkpoint: epath.Path) -> Tensors:
    """Every array of a checkpoint. Raises `UserError` where it cannot be read."""
    checkpoint = checkpoint.absolute()
    try:
        tree: Any = ocp.metadata(checkpoint).metadata
        if tree is None:
            raise ValueError("the description of its arrays is damaged")
        leaves = list(_leaves(tree))
    except Exception as error:
        raise _unreadable(checkpoint, error) from error
    return {"/".join(keys): _tensor(checkpoint, keys, leaf) for keys, leaf in leaves}


def load(checkpoint: epath.Path, wanted: Any) -> Any:
    """The wanted part of a checkpoint, each leaf placed and cast as its abstract one says.

    Each process reads what it holds of the leaves, and waits for no other: one may load alone.
    """
    context = ocp.Context(multiprocessing_options=_alone())
    context.pytree.loading.partial_load = True
    try:
        with context:
            found = ocp.load(checkpoint, wanted)
        loaded = dict(_leaves(found))
        # What a checkpoint lacks comes back as it was given.
        if missing := [keys for keys, leaf in _leaves(wanted) if loaded[keys] is leaf]:
            raise ValueError(f"{'/'.join(missing[0])!r} is missing")
        return found
    except Exception as error:
        raise _unreadable(checkpoint, error) from error


def _alone() -> ocp.options.MultiprocessingOptions:
    """This process waits for no other."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )


def save(
    checkpoint: epath.Path,
    tensors: Tensors,
    advance: Advance,
    *,
    levels: int = 1,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Save arrays a few at a time, as dictionaries `levels` deep, names split at the last '/'s."""
    checkpoint = checkpoint.absolute()
    # Compressed, a third copy of a whole table would be in memory; weights hardly shrink.
    plain = ocp.options.ArrayOptions(saving=ocp.options.ArrayOptions.Saving(use_compression=False))
    for number, parcel in enumerate(parcels(tensors, _PARCEL_BYTES)):
        tree: dict[str, Any] = {}
        for name, tensor in parcel.items():
            *folders, last = name.rsplit("/", levels - 1)
            here = tree
            for folder in folders:
                here = here.setdefault(folder, {})
            here[last] = tensor.read()
        with ocp.Context(array_options=plain):
            ocp.partial.save(checkpoint, tree, custom_metadata=None if number else metadata)
        advance(sum(tensor.bytes for tensor in parcel.values()))
    ocp.partial.finalize(checkpoint)


def _tensor(checkpoint: epath.Path, keys: tuple[str, ...], leaf: Any) -> Tensor:
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)

    def read() -> np.ndarray:
        wanted: Any = np.empty(shape, dtype)  # an address range, never touched
        for key in reversed(keys):
            wanted = {key: wanted}
        found = load(checkpoint, wanted)
        for key in keys:
            found = found[key]
        return found

    return Tensor(shape, dtype, read)


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, str(key)))
    elif getattr(tree, "shape", None) is not None:
        yield keys, tree


def _unreadable(checkpoint: epath.Path, error: Exception) -> UserError:
    line = (str(error) or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec=")[0]
    return UserError(f"checkpoint {checkpoint} cannot be read: {line}")
