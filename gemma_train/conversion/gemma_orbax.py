"""Orbax folders of the gemma library: its FLAT, NESTED and STACKED layouts in, FLAT out.

FLAT is how Gemma was released: one dictionary whose keys are paths. The library keeps no config, so
that a folder is known by its shapes; ours carry a record beside the arrays. What sees images is
read where it is there and no text model is asked for.
Source: google-deepmind/gemma, gemma/gm/ckpts/_checkpoint.py and _compat.py.
"""

import re
from dataclasses import replace

from etils import epath

from gemma_train import storage
from gemma_train.config import read_model_record, record
from gemma_train.conversion import orbax_arrays
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.tensors import Tensors, Weights, slices
from gemma_train.conversion.tokenizer_files import copy_tokenizer, find_tokenizer
from gemma_train.conversion.vision_names import GEMMA_PROJECTOR
from gemma_train.errors import UserError
from gemma_train.metrics.byte_progress import Advance
from gemma_train.model import sizes
from gemma_train.model.config import GemmaConfig

RECORD = "gemma_config.py"
_STATE = "state"  # where Orbax puts the arrays in a checkpoint
_SIGNS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_LONG = {"global_rope_factor": 8.0, "context": 131_072}
_PUBLISHED = (
    sizes.GEMMA1_2B,
    sizes.GEMMA1_7B,
    sizes.GEMMA2_2B,
    sizes.GEMMA2_9B,
    sizes.GEMMA2_27B,
    sizes.GEMMA3_270M,
    sizes.GEMMA3_1B,
    # As they were released, after the stage that rescales RoPE.
    replace(sizes.GEMMA3_4B, **_LONG),
    replace(sizes.GEMMA3_12B, **_LONG),
    replace(sizes.GEMMA3_27B, **_LONG),
)
_TRANSFORMER = "transformer/"
# Dumps of post-training stand one folder deeper.
_DEEPER = "rlx_networks/policy_network/"
_ENCODER, _NESTED_ENCODER = "SigLiPFromPatches_0/", "vision_encoder/"
# Of what begins as the projector does the library itself makes no use.
_UNUSED = tuple(GEMMA_PROJECTOR + name for name in ("output_embedding", "input_embedding_extra"))
_STACKED = re.compile(r"transformer/stacked_layers/attention_type_(\d+)/(.*)")
_LAYER = re.compile(r"transformer/layer_(\d+)/(.*)")


def is_folder(folder: epath.Path) -> bool:
    """Whether this is an Orbax checkpoint."""
    return any((folder / sign).exists() for sign in _SIGNS)


def read(folder: epath.Path, expected: GemmaConfig | None) -> Weights:
    """The model in a folder; of one that sees images the text alone, where that is `expected`.

    Its config is the record beside it, the published one of these shapes, or else `expected`.
    Raises `UserError` where there is none of them, and for tensors that are missing, unexpected or
    of the wrong shape.
    """
    found, stored_as = _by_flat_name(orbax_arrays.stored(folder))
    if not any(map(_LAYER.fullmatch, found)):
        raise UserError(f"{folder} is an Orbax checkpoint, but not one of a Gemma")
    if (folder / RECORD).exists():
        config = read_model_record(folder / RECORD)
    else:
        config = _published(found) or expected
    if config is None:
        raise UserError(
            f"{folder} is no published Gemma ({_shape(found)}) and has no {RECORD}: name the "
            "config of a run with such a model (--config)"
        )
    if expected is not None and expected.vision is None:
        config = replace(config, vision=None)
    not_ours = _UNUSED if config.vision is not None else (_ENCODER, GEMMA_PROJECTOR)
    ours = {name: tensor for name, tensor in found.items() if not name.startswith(not_ours)}
    gates = ours.get("transformer/layer_0/mlp/gating_einsum/w")
    wide_gates = None  # as the library keeps this model, where the shape leaves it open
    if gates is not None and len(gates.shape) == 3 and gates.shape[1] != gates.shape[2]:
        wide_gates = gates.shape[1] == config.width
    return Weights(
        source=str(folder),
        format="gemma",
        config=config,
        tensors=to_ours(ours, config, "gemma", source=str(folder), wide_gates=wide_gates),
        tokenizer=find_tokenizer(folder),
        left_out=tuple(stored_as[name] for name in found if name not in ours),
    )


def write(weights: Weights, folder: epath.Path, advance: Advance) -> None:
    """Write a FLAT folder that the gemma library loads, and the record of its config."""
    weights.check_encoder()
    tensors = from_ours(weights.tensors, weights.config, "gemma")
    work = folder / "orbax"
    orbax_arrays.save(work, tensors, advance, levels=2)
    # Orbax's own format puts a level more than the library's releases have.
    for part in (work / _STATE).iterdir():
        part.rename(folder / part.name)
    work.rmtree()
    storage.write_whole(folder / RECORD, record(weights.config))
    copy_tokenizer(weights, folder)


def _by_flat_name(stored: Tensors) -> tuple[Tensors, dict[str, str]]:
    """(tensors, their stored names) by the name that FLAT gives them."""
    found: Tensors = {}
    stored_as = {}
    names = {name: _flat(name) for name in stored}
    stacks = [match for name in names.values() if (match := _STACKED.fullmatch(name))]
    length = max((int(match[1]) + 1 for match in stacks), default=0)
    for name, tensor in stored.items():
        flats = {names[name]: tensor}
        if match := _STACKED.fullmatch(names[name]):
            flats = {
                f"{_TRANSFORMER}layer_{repetition * length + int(match[1])}/{match[2]}": one
                for repetition, one in enumerate(slices(tensor))
            }
        found |= flats
        stored_as |= dict.fromkeys(flats, name)
    return found, stored_as


def _flat(name: str) -> str:
    name = name.removeprefix(_DEEPER)
    if name.startswith(_NESTED_ENCODER):
        return _ENCODER + name.removeprefix(_NESTED_ENCODER)
    if not name.startswith((_TRANSFORMER, _ENCODER)):
        name = _TRANSFORMER + name  # NESTED
    if name.endswith(("mlp/gating_einsum", "mlp/linear")):
        name += "/w"
    return name


def _published(found: Tensors) -> GemmaConfig | None:
    """The published Gemma with this many layers of these shapes; with images, if it has them."""
    for config in _PUBLISHED:
        if _shape(found) == _told(
            config.layers, (config.query_heads, config.head_dimension, config.width)
        ):
            has_encoder = any(name.startswith(_ENCODER) for name in found)
            return replace(config, vision=sizes.SO400M) if has_encoder else config
    return None


def _shape(found: Tensors) -> str:
    layers = len({match[1] for name in found if (match := _LAYER.fullmatch(name))})
    output = found.get("transformer/layer_0/attn/attn_vec_einsum/w")
    return _told(layers, output.shape if output else None)


def _told(layers: int, output: tuple[int, ...] | None) -> str:
    return f"{layers} layers, heads x head dimension x width {output}"
