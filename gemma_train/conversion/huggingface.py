"""Hugging Face folders: safetensors in one file or in shards with an index, and config.json.

Text models are read and written; the vision tower and projector of a multimodal folder are left
out. Pickled weights (.bin, .pt) are never opened.
"""

import hashlib
import json
import shutil
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemma_train.conversion.huggingface_config import read_config, write_config
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.tensors import DTYPES, Tensor, Tensors, Weights, parcels
from gemma_train.conversion.tokenizer_files import dump, find_tokenizer, write_huggingface_tokenizer
from gemma_train.errors import UserError, require
from gemma_train.metrics.byte_progress import Advance
from gemma_train.model.config import GemmaConfig

CONFIG, TABLE = "config.json", "model.embed_tokens.weight"
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 1 << 29  # of a shard, unless one tensor is larger
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# What a text model's names begin with, in text folders and in the families of multimodal ones.
_TEXT = ("language_model.model.", "model.language_model.", "model.")
_NOT_TEXT = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
_HEAD, _FREQUENCIES = "lm_head.weight", "rotary_emb.inv_freq"  # which old versions stored


def is_folder(folder: epath.Path) -> bool:
    """Whether this is a Hugging Face folder, or means to be one."""
    return (folder / CONFIG).exists()


def read(folder: epath.Path, expected: GemmaConfig | None) -> Weights:
    """The text model in a folder.

    Raises `UserError` for another architecture, a tensor that is missing, unexpected or of the
    wrong shape, a shard that is missing or truncated, and pickled weights.
    """
    config = read_config(_json(folder / CONFIG), str(folder / CONFIG), expected)
    text: Tensors = {}
    left_out, head = [], None
    for name, tensor in _stored(folder).items():
        if name.startswith(_NOT_TEXT):
            left_out.append(name)
        elif name.endswith(_HEAD):
            head = tensor
        elif not name.endswith(_FREQUENCIES):
            here = _canonical(name)
            require(
                here not in text, f"{folder}: tensor {here!r} is there by two names, as {name!r}"
            )
            text[here] = tensor
    if head is not None and TABLE in text:
        require(
            _digest(head) == _digest(text[TABLE]),
            f"{folder}: {_HEAD} is not the embedding {TABLE}: Gemma's are one, which this model "
            "could not keep apart",
        )
    return Weights(
        source=str(folder),
        format="hf",
        config=config,
        tensors=to_ours(text, config, "hf", source=str(folder)),
        tokenizer=find_tokenizer(folder),
        left_out=tuple(left_out),
    )


def write(weights: Weights, folder: epath.Path, advance: Advance) -> None:
    """Write a folder that transformers loads, in shards of half a gigabyte or one tensor."""
    tensors = from_ours(weights.tensors, weights.config, "hf")
    rows = tensors[TABLE].shape[0]
    dtype = next(name for name, dtype in DTYPES.items() if dtype == weights.dtype)
    ids = write_huggingface_tokenizer(weights, folder)
    dump(folder / CONFIG, {**write_config(weights.config, dtype, rows=rows), **ids})
    largest = max(tensor.bytes for tensor in tensors.values())
    shards = list(parcels(tensors, max(_SHARD_BYTES, largest)))
    where = {}
    for number, shard in enumerate(shards, start=1):
        file = (
            _ONE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        save_file(
            {name: tensor.read() for name, tensor in shard.items()},
            folder / file,
            metadata={"format": "pt"},
        )
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors lets its owner alone read it
        where |= dict.fromkeys(shard, file)
        advance(sum(tensor.bytes for tensor in shard.values()))
    if len(shards) > 1:
        total = sum(tensor.bytes for tensor in tensors.values())
        dump(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _stored(folder: epath.Path) -> Tensors:
    """Every tensor of a folder's safetensors files, by the name it has there."""
    require("://" not in str(folder), f"{folder}: safetensors are read from local folders: copy it")
    if (folder / _INDEX).exists():
        where = _json(folder / _INDEX).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise UserError(f"{folder / _INDEX} has no weight_map: download it again")
        found: Tensors = {}
        for file in sorted(set(map(str, where.values()))):
            require(
                "/" not in file, f"{folder / _INDEX} names the file {file!r} outside its folder"
            )
            shard = _in_file(folder / file, f", but named by {_INDEX}")
            for name in (name for name, place in where.items() if place == file):
                require(
                    name in shard,
                    f"{folder / file}: tensor {name!r} is missing, which {_INDEX} names",
                )
            found |= shard
        return found
    if (folder / _ONE_FILE).exists():
        return _in_file(folder / _ONE_FILE, "")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which could run any program: it "
            "is not opened; save them as safetensors (transformers: save_pretrained)"
        )
    raise UserError(f"{folder} holds neither {_ONE_FILE} nor {_INDEX}")


def _in_file(file: epath.Path, why: str) -> Tensors:
    require(
        file.exists() and not file.is_dir(), f"{file} is missing{why}: download the folder again"
    )

    def reader(name: str):
        def read():  # by a read, not through a map, which would hold a second copy in memory
            with safe_open(file, framework="np", backend="pread") as opened:
                return opened.get_tensor(name)

        return read

    found: Tensors = {}
    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                entry = opened.get_slice(name)
                dtype = _DTYPES.get(entry.get_dtype())
                if dtype is None:
                    raise UserError(
                        f"{file}: tensor {name!r} is {entry.get_dtype()}: "
                        f"{', '.join(_DTYPES)} are known"
                    )
                found[name] = Tensor(tuple(entry.get_shape()), DTYPES[dtype], reader(name))
    except SafetensorError as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}): download it again"
        ) from None
    return found


def _digest(tensor: Tensor) -> bytes:
    array = np.ascontiguousarray(tensor.read())
    return hashlib.sha256(array.reshape(-1).view(np.uint8)).digest()


def _canonical(name: str) -> str:
    """The name that a text folder gives this tensor."""
    for prefix in _TEXT:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    require(isinstance(found, dict), f"{file} does not hold a JSON object")
    return found
