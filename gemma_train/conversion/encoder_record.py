"""Whose embeddings of images a run has seen: the `Head` of the store that it began with."""

from dataclasses import replace

from gemma_train import sidecar, storage
from gemma_train.data.images.store import FORMAT_VERSION, Head
from gemma_train.errors import require
from gemma_train.run_files import ENCODER_RECORD


def read(folder: str) -> Head | None:
    """None of a run that has seen none, or not begun."""
    file = storage.path(folder) / ENCODER_RECORD
    if not file.exists():
        return None
    return sidecar.read(file, Head, FORMAT_VERSION, "remove it to go on with what is there")


def write(folder: str, head: Head) -> None:
    """Keep it for the run's later lives, and for whoever shows it an image."""
    sidecar.write(storage.path(folder) / ENCODER_RECORD, head, FORMAT_VERSION)


def check(folder: str, head: Head) -> None:
    """Raise `UserError`, naming both, if a run has seen embeddings of another encoder."""
    there = read(folder)
    require(
        there is None or replace(there, encoder=head.encoder) == head,
        f"{folder!r} was trained with images of {_named(there or head)}, data.images.store has "
        f"those of {_named(head)}: bring that store back, or choose another folder",
    )


def check_sha256(folder: str, sha256: str) -> None:
    """The same of an encoder that stands in the run's own folder."""
    there = read(folder)
    require(
        there is None or there.encoder_sha256 == sha256,
        f"{folder!r} was trained with images of {_named(there) if there else ''}, and its folder "
        f"encoder/ holds {sha256[:12]}...: put that one there, or remove the folder",
    )


def _named(head: Head) -> str:
    return f"encoder {head.encoder!r} ({head.encoder_sha256[:12]}...)"
