"""Tensors in safetensors files: one file, or shards with an index; read one at a time.

Pickled weights (.bin, .pt) are never opened.
"""

import shutil
from typing import Any

from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemma_train.contents import read_object
from gemma_train.conversion.tensors import DTYPES, Tensor, Tensors, parcels
from gemma_train.conversion.tokenizer_files import dump
from gemma_train.errors import UserError, require
from gemma_train.metrics.byte_progress import Advance

CONFIG = "config.json"
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 1 << 29  # of a shard, unless one tensor is larger
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored(folder: epath.Path) -> Tensors:
    """Every tensor of a folder's safetensors files, by the name it has there."""
    require("://" not in str(folder), f"{folder}: safetensors are read from local folders: copy it")
    if (folder / _INDEX).exists():
        where = read_json(folder / _INDEX).get("weight_map")
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


def write(tensors: Tensors, folder: epath.Path, advance: Advance) -> None:
    """Write tensors beside a folder's config.json, in shards of half a gigabyte or one tensor."""
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


def read_json(file: epath.Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` for what is none."""
    return read_object(file, "download the folder again")
