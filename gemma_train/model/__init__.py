"""The model: arrays in, arrays out. It knows no batch keys, no trainer, no tokenizer, no files."""

from gemma_train.model.config import ComputeConfig, GemmaConfig
from gemma_train.model.gemma import Cache, Gemma

__all__ = ["Cache", "ComputeConfig", "Gemma", "GemmaConfig"]
