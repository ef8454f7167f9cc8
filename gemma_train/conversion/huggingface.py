"""Hugging Face folders: safetensors in one file or in shards with an index, and config.json.

Text models and those that see images; of the latter the text alone where that is asked for, or
where the folder has no vision tower.
"""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from etils import epath

from gemma_train.conversion import safetensors_files
from gemma_train.conversion.huggingface_config import read_config, write_config
from gemma_train.conversion.huggingface_vision import (
    TOKENS,
    encoder_name,
    processor_files,
    read_vision,
    write_multimodal,
)
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.names import text_prefix
from gemma_train.conversion.safetensors_files import CONFIG, read_json
from gemma_train.conversion.tensors import Tensor, Tensors, Weights, dtype_name
from gemma_train.conversion.tokenizer_files import dump, find_tokenizer, write_huggingface_tokenizer
from gemma_train.conversion.vision_names import HF_PROJECTOR
from gemma_train.errors import require
from gemma_train.metrics.byte_progress import Advance
from gemma_train.model.config import GemmaConfig

# What the names begin with: of text in text folders and in the families of multimodal ones, and of
# what sees images in each of those families.
_TEXT = ("language_model.model.", "model.language_model.", "model.")
_ENCODER = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.")
_PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.weight"
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # which old versions stored


def is_folder(folder: epath.Path) -> bool:
    """Whether this is a Hugging Face folder, or means to be one."""
    return (folder / CONFIG).exists()


def read(folder: epath.Path, expected: GemmaConfig | None) -> Weights:
    """The model in a folder; of one that sees images the text alone, where that is `expected`.

    Raises `UserError` for another architecture, a tensor that is missing, unexpected or of the
    wrong shape, a shard that is missing or truncated, and pickled weights.
    """
    json, file = read_json(folder / CONFIG), str(folder / CONFIG)
    config, stored = read_config(json, file, expected), safetensors_files.stored(folder)
    if (expected is None or expected.vision is not None) and _sees_images(json, stored):
        config = replace(config, vision=read_vision(json["vision_config"], json.get(TOKENS), file))
    ours: Tensors = {}
    left_out, head, table = [], None, text_prefix(config) + _TABLE
    for name, tensor in stored.items():
        here = _canonical(name, config)
        if here is None:
            left_out.append(name)
        elif name.endswith(_HEAD):
            head = tensor
        elif not name.endswith(_BUFFERS):
            require(
                here not in ours, f"{folder}: tensor {here!r} is there by two names, as {name!r}"
            )
            ours[here] = tensor
    if head is not None and table in ours:
        require(
            _digest(head) == _digest(ours[table]),
            f"{folder}: {_HEAD} is not the embedding {table}: Gemma's are one, which this model "
            "could not keep apart",
        )
    return Weights(
        source=str(folder),
        format="hf",
        config=config,
        tensors=to_ours(ours, config, "hf", source=str(folder)),
        tokenizer=find_tokenizer(folder),
        left_out=tuple(left_out),
    )


def write(weights: Weights, folder: epath.Path, advance: Advance) -> None:
    """Write a folder that transformers loads, in shards of half a gigabyte or one tensor."""
    weights.check_encoder()
    config = weights.config
    tensors = from_ours(weights.tensors, config, "hf")
    rows = tensors[text_prefix(config) + _TABLE].shape[0]
    dtype = dtype_name(weights.dtype)
    ids = write_huggingface_tokenizer(weights, folder)
    keys = {**write_config(config, dtype, rows=rows), **ids}
    if config.vision is not None:
        vision_dtype = dtype_name(next(iter(weights.encoder.values())).dtype)
        keys = write_multimodal(keys, config, (dtype, vision_dtype), weights.tokenizer)
        for name, content in processor_files(config.vision).items():
            if not (folder / name).exists():
                dump(folder / name, content)
    dump(folder / CONFIG, keys)
    safetensors_files.write(tensors, folder, advance)


def _sees_images(json: dict[str, Any], stored: Tensors) -> bool:
    """Whether there is a vision tower, and a config of it."""
    has_tower = any(name.startswith(_ENCODER) for name in stored)
    return isinstance(json.get("vision_config"), dict) and has_tower


def _canonical(name: str, config: GemmaConfig) -> str | None:
    """The name that the table gives this tensor of any family; None of what is left out."""
    for prefixes, canonical in ((_ENCODER, encoder_name), (_PROJECTOR, HF_PROJECTOR.__add__)):
        for prefix in prefixes:
            if name.startswith(prefix):
                return canonical(name.removeprefix(prefix)) if config.vision else None
    for prefix in _TEXT:
        if name.startswith(prefix):
            return text_prefix(config) + name.removeprefix(prefix)
    return name


def _digest(tensor: Tensor) -> bytes:
    array = np.ascontiguousarray(tensor.read())
    return hashlib.sha256(array.reshape(-1).view(np.uint8)).digest()
