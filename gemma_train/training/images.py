"""A run's images: embedded by one encoder, of the model's sizes, from first step to last."""

from gemma_train.config import RunConfig
from gemma_train.conversion import encoder_record
from gemma_train.conversion.fingerprint import stored_encoder_sha256
from gemma_train.conversion.tensors import Weights
from gemma_train.data.images.store import Head, read_head
from gemma_train.errors import require
from gemma_train.mesh import is_leader


def store_head(config: RunConfig) -> Head | None:
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
    if begun:
        encoder_record.check(config.folder, head)
    if is_leader() and not (begun and encoder_record.read(config.folder)):
        encoder_record.write(config.folder, head)


def check_beginning(weights: Weights | None, head: Head | None) -> None:
    """Raise `UserError`, naming both, for weights that came with another encoder than the store's.

    Weights that came without one fit any store.
    """
    if weights is None or head is None:
        return
    there = stored_encoder_sha256(weights)
    require(
        there is None or there == head.encoder_sha256,
        f"initial_weights {weights.source!r} see through encoder {(there or '')[:12]}..., and "
        f"data.images.store has embeddings of {head.encoder!r} ({head.encoder_sha256[:12]}...): "
        f"embed the images with ImageEncoding(encoder={weights.source!r})",
    )
