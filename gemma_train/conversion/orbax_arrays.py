"""Arrays in Orbax checkpoints, one at a time: names joined by '/', whatever the nesting."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from etils import epath
from orbax.checkpoint import v1 as ocp

from gemma_train import storage
from gemma_train.checkpoints.packing import Packed, Place
from gemma_train.conversion.tensors import Tensor, Tensors, parcels
from gemma_train.errors import Stalled, UserError
from gemma_train.metrics.byte_progress import Advance
from gemma_train.run_files import STATE

_PARCEL_BYTES = 1 << 28
_DESCRIPTION = "_METADATA"  # beside the arrays
# Weights hardly shrink; compressed, a third copy of a whole table would be in memory.
PLAIN = ocp.options.ArrayOptions(saving=ocp.options.ArrayOptions.Saving(use_compression=False))
_PASSING = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b")  # TensorStore's

# What orbax logs it also raises; of a damaged checkpoint asyncio tells once for every array.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def stored(checkpoint: epath.Path) -> Tensors:
    """Every array of a checkpoint, also those that are packed into one; any process may read alone.

    Raises `UserError` where it cannot be read.
    """
    checkpoint = checkpoint.absolute()
    leaves, packed = _described(checkpoint)
    folder = _arrays_of(checkpoint)
    arrays = {
        "/".join(keys): _tensor(checkpoint, folder, keys, leaf) for keys, leaf in leaves.items()
    }
    whole = {place.array: cache(arrays[place.array].read) for place in packed.places.values()}
    small = {
        name: Tensor(place.shape, arrays[place.array].dtype, partial(_cut, place, whole))
        for name, place in packed.places.items()
    }
    return {name: array for name, array in arrays.items() if name not in whole} | small


def load(checkpoint: epath.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted leaves of a run's checkpoint, each placed and cast as its abstract one says.

    All processes come; none waits for another. Raises `UserError` where it cannot be read.
    """
    checkpoint = checkpoint.absolute()
    _, packed = _described(checkpoint)
    loaded = _load(checkpoint, packed.arrays(wanted))
    try:
        return packed.unpack(loaded, wanted)
    except ValueError as error:
        raise _unreadable(checkpoint, error) from error


def metadata(checkpoint: epath.Path) -> dict[str, Any]:
    """What was kept beside the arrays. Raises `UserError` where it cannot be read."""
    try:
        found: Any = ocp.metadata(checkpoint.absolute())
        return found.custom_metadata or {}
    except Exception as error:
        raise _unreadable(checkpoint, error) from error


def _cut(place: Place, whole: dict[str, Callable[[], np.ndarray]]) -> np.ndarray:
    return place.of(whole[place.array]())


def _described(checkpoint: epath.Path) -> tuple[dict[tuple[str, ...], Any], Packed]:
    """What tells of each array, by its keys; and what is packed in which."""
    try:
        found: Any = ocp.metadata(checkpoint)
        if found.metadata is None:
            raise ValueError("the description of its arrays is damaged")
        leaves = dict(_leaves(found.metadata))
        by_name = {"/".join(keys): leaf for keys, leaf in leaves.items()}
        return leaves, Packed.told(found.custom_metadata, by_name)
    except Exception as error:
        raise _unreadable(checkpoint, error) from error


def _load(checkpoint: epath.Path, wanted: Any) -> Any:
    """Arrays, whatever their nesting; each process reads what it holds of them.

    All come: Orbax counts what it does, and every save waits for those with the same count.
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
    for number, parcel in enumerate(parcels(tensors, _PARCEL_BYTES)):
        tree: dict[str, Any] = {}
        for name, tensor in parcel.items():
            *folders, last = name.rsplit("/", levels - 1)
            here = tree
            for folder in folders:
                here = here.setdefault(folder, {})
            here[last] = tensor.read()
        with ocp.Context(array_options=PLAIN):
            ocp.partial.save(checkpoint, tree, custom_metadata=None if number else metadata)
        advance(sum(tensor.bytes for tensor in parcel.values()))
    ocp.partial.finalize(checkpoint)


def _arrays_of(checkpoint: epath.Path) -> epath.Path:
    """The folder of the arrays: one within the checkpoint or, of older Orbax, the checkpoint."""
    within = (checkpoint / STATE, *sorted(checkpoint.iterdir()))
    return next((one for one in within if (one / _DESCRIPTION).exists()), checkpoint)


def _tensor(checkpoint: epath.Path, folder: epath.Path, keys: tuple[str, ...], leaf: Any) -> Tensor:
    """Read whole, by the handler itself: an operation of Orbax's would be counted."""
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)

    def read() -> np.ndarray:
        wanted: Any = ocp_v0.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(keys):
            wanted = {key: wanted}
        asked = ocp_v0.args.PyTreeRestore(wanted, restore_args=wanted, partial_restore=True)
        try:
            found: Any = ocp_v0.PyTreeCheckpointHandler().restore(folder, args=asked)
            for key in keys:
                found = found[key]
            if (found.shape, found.dtype) != (shape, dtype):
                raise ValueError(f"{'/'.join(keys)!r} is not as it is described")
        except Exception as error:
            raise _unreadable(checkpoint, error) from error
        return found

    return Tensor(shape, dtype, read)


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, str(key)))
    elif getattr(tree, "shape", None) is not None:
        yield keys, tree


def _unreadable(checkpoint: epath.Path, error: Exception) -> Exception:
    """What to raise: one line that names the checkpoint; what a device refuses as it is.

    Too little memory is the checkpoint's: one that is damaged may tell of arrays of any size.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return error
    line = (str(error) or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec=")[0]
    if storage.is_transient(error) or _PASSING.search(line):
        return Stalled(f"checkpoint {checkpoint} cannot be read now: {line}")
    return UserError(f"checkpoint {checkpoint} cannot be read: {line}")
