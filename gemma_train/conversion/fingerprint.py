"""What tells one model's parameters from another's, in whatever format they lie."""

from hashlib import sha256

import numpy as np

from gemma_train.conversion.tensors import DTYPES, Tensors, Weights
from gemma_train.metrics.byte_progress import Advance


def parameters_sha256(weights: Weights, advance: Advance = lambda size: None) -> str:
    """The SHA-256 of every parameter's name, shape, dtype and bytes. Reads all, one at a time.

    Names and shapes are ours, layer by layer, so that a model and its conversions into other
    formats have the same; in another dtype it is another model. A frozen encoder has its own.
    """
    return tensors_sha256(weights.parameters, advance)


def tensors_sha256(tensors: Tensors, advance: Advance = lambda size: None) -> str:
    """The same of any tensors by our names."""
    sums = {}
    for name, tensor in tensors.items():
        digest = sha256(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
        sums[name] = digest.hexdigest()
        advance(tensor.bytes)
    return sha256("".join(f"{name} {sums[name]}\n" for name in sorted(sums)).encode()).hexdigest()


def stored_encoder_sha256(weights: Weights) -> str | None:
    """Of the encoder that a model has seen images by, as `load_encoder` gives it in float32.

    None of a model that came without, and of which nothing is known.
    """
    if weights.encoder_sha256 or not weights.encoder:
        return weights.encoder_sha256
    return float32_sha256(weights.encoder)


def float32_sha256(tensors: Tensors) -> str:
    """Of an encoder's tensors where they are stored. Reads all, one at a time."""
    return tensors_sha256({n: t.cast(DTYPES["float32"]) for n, t in tensors.items()})
