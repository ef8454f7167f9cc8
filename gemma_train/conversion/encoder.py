"""A frozen vision encoder by itself: loaded, written, and told from others."""

from typing import Literal

import numpy as np

from gemma_train import storage
from gemma_train.conversion import encoder_folder
from gemma_train.conversion.convert import written_whole
from gemma_train.conversion.fingerprint import tensors_sha256
from gemma_train.conversion.load import load_siglip, open_weights, some_mesh
from gemma_train.conversion.tensors import Tensor, Tensors, unstacked_encoder
from gemma_train.errors import UserError, require
from gemma_train.leaves import by_path
from gemma_train.model.siglip import Siglip


def load_encoder(folder: str, dtype: Literal["float32", "bfloat16"] = "float32") -> Siglip:
    """The encoder of a Hugging Face or gemma folder or a run that sees images, or one by itself.

    It computes in `dtype`, on every device of the mesh in force, or else on this process's first.
    Raises `UserError` for a folder that has none.
    """
    require(dtype in ("float32", "bfloat16"), f"dtype is {dtype!r}: choose 'float32' or 'bfloat16'")
    found = storage.existing(folder, "encoder folder")
    if found.is_dir() and encoder_folder.is_folder(found):
        config, tensors = encoder_folder.read(found)
    else:
        weights = open_weights(folder)
        config, tensors = weights.config.vision, weights.encoder
        if config is None or not tensors:
            raise UserError(
                f"{folder!r} holds a model, but no vision encoder: name one that has it"
            )
    with some_mesh():
        return load_siglip(tensors, config, dtype)


def save_encoder(encoder: Siglip, folder: str) -> None:
    """Write it as transformers' SiglipVisionModel does, whole or not at all.

    Raises `UserError` where the folder exists, and where its disk has no room.
    """
    tensors = _tensors(encoder)
    with written_whole(folder, sum(tensor.bytes for tensor in tensors.values())) as work:
        work.mkdir()
        encoder_folder.write(tensors, encoder.config, work, lambda size: None)


def encoder_sha256(encoder: Siglip) -> str:
    """The SHA-256 of every parameter's name, shape, dtype and bytes, in whatever format it lay.

    In another dtype it is another encoder: it computes in it.
    """
    return tensors_sha256(_tensors(encoder))


def _tensors(encoder: Siglip) -> Tensors:
    """By our names, layer by layer; a leaf comes into host memory when it is read."""
    return unstacked_encoder(
        {
            path: Tensor(leaf.shape, np.dtype(leaf.dtype), lambda leaf=leaf: np.asarray(leaf))
            for path, leaf in by_path(encoder).items()
        }
    )
