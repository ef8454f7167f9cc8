"""From one folder to another: whole or not at all, one tensor at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, assert_never

from etils import epath

from gemma_train import storage
from gemma_train.conversion import gemma_orbax, gguf_file, huggingface, run_folder
from gemma_train.conversion.tensors import Weights
from gemma_train.errors import require
from gemma_train.metrics.byte_progress import progress

OutputFormat = Literal["hf", "gemma", "gguf", "run"]


def convert_weights(weights: Weights, target: str, format: OutputFormat) -> None:
    """Write weights as a Hugging Face folder, a FLAT gemma folder, a GGUF file or a run.

    The target appears when it is whole. Raises `UserError` where it exists, where its disk has no
    room, and where the format cannot hold this model.
    """
    _ = weights.dtype  # a mixture is refused
    size = sum(tensor.bytes for tensor in weights.tensors.values())
    with written_whole(target, size) as work, progress(f"writing {target}", size) as advance:
        match format:
            case "hf":
                work.mkdir()
                huggingface.write(weights, work, advance)
            case "gemma":
                work.mkdir()
                gemma_orbax.write(weights, work, advance)
            case "run":
                work.mkdir()
                run_folder.write(weights, work, advance, name=target)
            case "gguf":
                gguf_file.write(weights, work, advance)
            case _:
                assert_never(format)


@contextmanager
def written_whole(target: str, size: int) -> Iterator[epath.Path]:
    """Where to write what becomes `target`, of so many bytes, if nothing is raised meanwhile.

    Raises `UserError` where the target exists, and where its disk has no room.
    """
    require(
        "://" not in target,
        f"target {target!r}: weights are written to local folders; copy it after",
    )
    final = storage.path(target).resolve()
    require(final != epath.Path().resolve(), f"target {target!r} is the folder you are in")
    exists = final.exists() and (not final.is_dir() or any(final.iterdir()))
    require(not exists, f"target {target!r} exists: choose another, or remove it")
    free = storage.free_bytes(final)
    require(
        free is None or free > size,
        f"target {target!r} needs {size / 1e9:.1f} GB, but its disk has {(free or 0) / 1e9:.1f} GB",
    )
    final.parent.mkdir(parents=True, exist_ok=True)
    work = final.parent / f".{final.name}.writing"
    _remove(work)
    try:
        yield work
        if final.exists():
            final.rmdir()
        work.rename(final)
    finally:
        _remove(work)


def _remove(work: epath.Path) -> None:
    if work.is_dir():
        work.rmtree()
    elif work.exists():
        work.unlink()
