"""Weights in and out: Hugging Face, the gemma library's Orbax, GGUF, and our own runs."""

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.encoder import encoder_sha256, load_encoder, save_encoder
from gemma_train.conversion.load import load_model, named, open_weights

__all__ = [
    "convert_weights",
    "encoder_sha256",
    "load_encoder",
    "load_model",
    "named",
    "open_weights",
    "save_encoder",
]
