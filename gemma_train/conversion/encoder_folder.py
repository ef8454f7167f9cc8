"""A vision encoder in a folder of its own, as transformers' SiglipVisionModel writes it.

A run keeps its frozen one so, beside the checkpoints of what it trains; one tensor is read at a
time. Source: transformers, models/siglip/modeling_siglip.py.
"""

from etils import epath

from gemma_train.conversion import safetensors_files
from gemma_train.conversion.huggingface_vision import (
    MODEL_TYPE,
    TOKENS,
    encoder_name,
    read_vision,
    write_vision,
)
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.safetensors_files import CONFIG, read_json
from gemma_train.conversion.tensors import Tensors, dtype_name
from gemma_train.conversion.tokenizer_files import dump
from gemma_train.conversion.vision_names import HF_ENCODER
from gemma_train.metrics.byte_progress import Advance
from gemma_train.model.config import VisionConfig

_PREFIX = "vision_model."


def is_folder(folder: epath.Path) -> bool:
    """Whether a config.json there is that of an encoder by itself."""
    config = folder / CONFIG
    return config.exists() and read_json(config).get("model_type") == MODEL_TYPE


def read(folder: epath.Path) -> tuple[VisionConfig, Tensors]:
    """The encoder's config, and its tensors by our names, none of them read yet.

    Raises `UserError` for one that is no encoder of Gemma, and for tensors that do not fit it.
    """
    keys = read_json(folder / CONFIG)
    config = read_vision(keys, keys.get(TOKENS), str(folder / CONFIG))
    theirs: Tensors = {}
    for name, tensor in safetensors_files.stored(folder).items():
        if (here := encoder_name(name)) is not None:
            theirs[here] = tensor
    return config, to_ours(theirs, config, "hf", source=str(folder))


def write(ours: Tensors, config: VisionConfig, folder: epath.Path, advance: Advance) -> None:
    """Write an encoder, by our names, as transformers loads it."""
    dtype = dtype_name(next(iter(ours.values())).dtype)
    keys = {"architectures": ["SiglipVisionModel"], **write_vision(config, dtype)}
    dump(folder / CONFIG, {**keys, TOKENS: config.tokens})
    theirs = from_ours(ours, config, "hf")
    named = {_PREFIX + name.removeprefix(HF_ENCODER): tensor for name, tensor in theirs.items()}
    safetensors_files.write(named, folder, advance)
