"""A run's images: embedded by one encoder, of the model's sizes, from first step to last."""

from dataclasses import replace

from gemma_train import sidecar, storage
from gemma_train.config import RunConfig
from gemma_train.conversion.encoder import stored_encoder_sha256
from gemma_train.conversion.tensors import Weights
from gemma_train.data.images.store import FORMAT_VERSION, Head, read_head
from gemma_train.errors import require
from gemma_train.mesh import is_leader
from gemma_train.run_files import ENCODER_RECORD


def embedded(config: RunConfig) -> Head | None:
    """What made the embeddings that a run reads; None where it reads text alone.

    Raises `UserError` where there are none, or of other sizes than the model's.
    """
    if config.data.images is None:
        return None
    head, vision = read_head(config.data.images.store), config.model.vision
    assert vision is not None
    for name in ("side", "tokens", "width"):
        here, there = getattr(vision, name), getattr(head, name)
        require(
            here == there,
            f"model.vision.{name} is {here}, but the embeddings in {config.data.images.store!r} "
            f"were made with {there}: make them agree",
        )
    return head


def keep_encoder(config: RunConfig, head: Head | None, *, begun: bool) -> None:
    """Keep which encoder a run begins with; of one that has `begun`, refuse another.

    Raises `UserError` naming both.
    """
    if head is None:
        return
    there = _kept(config.folder)
    if begun and there is not None:
        require(
            replace(there, encoder=head.encoder) == head,
            f"folder {config.folder!r} was trained with images of encoder {there.encoder!r} "
            f"({there.encoder_sha256[:12]}...), data.images.store has those of {head.encoder!r} "
            f"({head.encoder_sha256[:12]}...): bring that store back, or choose another --folder",
        )
    elif is_leader():
        sidecar.write(storage.path(config.folder) / ENCODER_RECORD, head, FORMAT_VERSION)


def check_beginning(weights: Weights | None, head: Head | None) -> None:
    """Raise `UserError`, naming both, for weights that came with another encoder than the store's.

    Weights that came without one fit any store.
    """
    if weights is None or head is None or not weights.encoder:
        return
    there = stored_encoder_sha256(weights)
    require(
        there == head.encoder_sha256,
        f"initial_weights {weights.source!r} see through encoder {there[:12]}..., and "
        f"data.images.store has embeddings of {head.encoder!r} ({head.encoder_sha256[:12]}...): "
        f"embed the images with ImageEncoding(encoder={weights.source!r})",
    )


def check_encoder(folder: str, sha256: str) -> None:
    """Raise `UserError`, naming both, if the run in a folder was trained with another encoder."""
    there = _kept(folder)
    require(
        there is None or there.encoder_sha256 == sha256,
        f"{folder!r} was trained with images of encoder "
        f"{there.encoder_sha256[:12] if there else ''}..., and the one that is here is "
        f"{sha256[:12]}...: put that one in its folder encoder/",
    )


def _kept(folder: str) -> Head | None:
    file = storage.path(folder) / ENCODER_RECORD
    if not file.exists():
        return None
    return sidecar.read(file, Head, FORMAT_VERSION, "remove it to go on with what is there")
