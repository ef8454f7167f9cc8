"""A GGUF file as llama.cpp loads Gemma 1, 2 and 3 (text), unquantised, written tensor by tensor.

Its loaders take what they do not read from the file for granted: other architectures are refused,
even where newer versions have a key for them, as older ones would compute something else without
a word. Sources: llama.cpp, conversion/gemma.py and base.py (keys, vocabulary), src/llama-model.cpp,
src/models/gemma{,2,3}.cpp (loaders), src/llama-vocab.cpp (tokenizer).
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from etils import epath
from gguf import (
    GGMLQuantizationType,
    GGUFReader,
    GGUFType,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    TokenType,
)

from gemma_train import storage
from gemma_train.conversion.mapping import from_ours
from gemma_train.conversion.tensors import BFLOAT16, Weights
from gemma_train.errors import UserError, require
from gemma_train.metrics.byte_progress import Advance
from gemma_train.model.config import GemmaConfig
from gemma_train.tokenizer import symbols
from gemma_train.tokenizer.tokenizer import Piece, Tokenizer

Architecture = Literal["gemma", "gemma2", "gemma3"]

_FLOAT32 = np.dtype(np.float32)
_STORED = {
    _FLOAT32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    np.dtype(np.float16): (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    BFLOAT16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
# What the loaders take for granted: the last layer of each period is global, the others are local.
_PERIOD = {
    "gemma": (1, "every layer global"),
    "gemma2": (2, "every 2nd layer global"),
    "gemma3": (6, "every 6th layer global"),
}
# How they know a 27B, whose queries they scale by width / heads, not by the head dimension.
_LAYERS_OF_27B = {"gemma": None, "gemma2": 46, "gemma3": 62}
_GEMMA3_LOCAL_BASE = 10_000.0
_END_OF_TURN = "<end_of_turn>"
_GIVEN = ("CONTROL", "UNKNOWN", "USER_DEFINED")  # kinds of pieces that are not learned
# Their scores, and those of rows without a piece, are the last: llama.cpp merges into any piece.
_GIVEN_SCORE, _PADDING_SCORE = -1000.0, -10_000.0


def write(weights: Weights, file: epath.Path, advance: Advance) -> None:
    """Write a file with matrices in the dtype of the weights and norms in float32.

    Raises `UserError` where llama.cpp would compute something else, and where the tokenizer is
    missing or has more pieces than the embedding has rows.
    """
    config = weights.config
    architecture = _architecture(config)
    tokenizer = _tokenizer(weights)
    norms_wide = {
        name: tensor.cast(_FLOAT32) if len(tensor.shape) == 1 else tensor
        for name, tensor in weights.parameters.items()
    }
    tensors = from_ours(norms_wide, config, "gguf")
    writer = GGUFWriter(file, architecture)
    try:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(storage.path(weights.source).name)
        writer.add_file_type(_STORED[weights.dtype][1])
        _add_config(writer, config)
        _add_tokenizer(writer, tokenizer, rows=config.vocabulary)
        for name, tensor in tensors.items():
            kind, _ = _STORED[tensor.dtype]
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            # Nothing keeps the array, so that it is gone before the next is read.
            writer.write_tensor_data(_bits(tensor.read()))
            advance(tensor.bytes)
    finally:
        writer.close()


def described(file: epath.Path) -> list[str]:
    """A file's metadata, but for its vocabulary, and its tensors by dtype, as lines to print."""
    try:
        return _described(file)
    except Exception as error:  # its reader takes for granted that a file is whole
        told = str(error) or type(error).__name__
        raise UserError(f"{str(file)!r} is not a whole GGUF file: {told}") from error


class _Reader(GGUFReader):
    """One that ends where the file does: gguf's own would count to whatever a length claims."""

    def _get(self, offset: int, *what: Any, **how: Any) -> np.ndarray:
        if offset >= len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, within what it lists")
        return super()._get(offset, *what, **how)


def _described(file: epath.Path) -> list[str]:
    reader = _Reader(file)
    lines = [f"{file}: GGUF file", "", "metadata"]
    for name, field in reader.fields.items():
        if field.types[:1] != [GGUFValueType.ARRAY]:
            lines.append(f"  {name:42} {field.contents()}")
    lines += ["", "tensors"]
    for kind in sorted({tensor.tensor_type for tensor in reader.tensors}):
        tensors = [tensor for tensor in reader.tensors if tensor.tensor_type == kind]
        count, size = (sum(int(getattr(t, n)) for t in tensors) for n in ("n_elements", "n_bytes"))
        lines.append(f"  {kind.name:20} {count:,} parameters, {size:,} bytes")
    return lines


def _bits(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that numpy can write to a file."""
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def _architecture(config: GemmaConfig) -> Architecture:
    """The architecture of llama.cpp that computes this; `UserError` where none does."""
    name: Architecture = "gemma"
    if config.post_norms:
        name = "gemma3" if config.query_key_norm else "gemma2"
    for field, (agrees, theirs) in _taken_for_granted(config, name).items():
        require(
            agrees,
            f"model.{field} is {getattr(config, field)!r}, but llama.cpp's {name} has {theirs}: "
            "choose another format for this model",
        )
    return name


def _taken_for_granted(config: GemmaConfig, name: Architecture) -> dict[str, tuple[bool, str]]:
    """By field: whether the config agrees with llama.cpp, and what that has."""
    period, pattern = _PERIOD[name]
    kinds = tuple("local" if (i + 1) % period else "global" for i in range(config.layers))
    scale = config.head_dimension
    if config.layers == _LAYERS_OF_27B[name]:
        scale = config.width // config.query_heads  # of integers, there too
    # Its Gemma 2 caps by 50 and 30 where the file has no caps; its others know none.
    has_caps, caps = name == "gemma2", "one" if name == "gemma2" else "none"
    local_base = _GEMMA3_LOCAL_BASE if name == "gemma3" else config.global_rope_base
    return {
        "query_key_norm": (
            config.query_key_norm == (name == "gemma3"),
            "such norms only together with post_norms",
        ),
        "pattern": (config.kinds == kinds, pattern),
        "query_scale": (
            (config.query_scale or config.head_dimension) == scale,
            f"{scale} in a model of {config.layers} layers",
        ),
        "attention_soft_cap": ((config.attention_soft_cap is not None) == has_caps, caps),
        "final_soft_cap": ((config.final_soft_cap is not None) == has_caps, caps),
        "local_rope_base": (
            "local" not in kinds or config.local_rope_base == local_base,
            f"{local_base:g} on local layers",
        ),
        "global_rope_factor": (
            config.global_rope_factor == 1 or name != "gemma2",
            "the same on local layers",
        ),
    }


def _add_config(writer: GGUFWriter, config: GemmaConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.query_heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_dimension)
    writer.add_value_length(config.head_dimension)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(config.global_rope_base)
    if config.global_rope_factor != 1:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.global_rope_factor)
    if "local" in config.kinds and config.window is not None:
        writer.add_sliding_window(config.window)  # tokens, the query's included, as ours
        writer.add_rope_freq_base_swa(config.local_rope_base)
    if config.attention_soft_cap is not None:
        writer.add_attn_logit_softcapping(config.attention_soft_cap)
    if config.final_soft_cap is not None:
        writer.add_final_logit_softcapping(config.final_soft_cap)


def _tokenizer(weights: Weights) -> Tokenizer:
    if weights.tokenizer is None:
        raise UserError(
            f"{weights.source} has no tokenizer.model, which a GGUF file needs: name the "
            "SentencePiece model with --tokenizer"
        )
    tokenizer = Tokenizer.load(weights.tokenizer)
    require(
        tokenizer.vocabulary <= weights.config.vocabulary,
        f"tokenizer {weights.tokenizer!r} has {tokenizer.vocabulary} pieces, but the embedding of "
        f"{weights.source} has {weights.config.vocabulary} rows: it is another model's",
    )
    return tokenizer


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, *, rows: int) -> None:
    texts, scores, types = zip(*_vocabulary(tokenizer, rows), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_unk_token_id(tokenizer.id_of(symbols.UNKNOWN))
    if _END_OF_TURN in texts:
        writer.add_eot_token_id(texts.index(_END_OF_TURN))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _vocabulary(tokenizer: Tokenizer, rows: int) -> Iterator[tuple[str, float, TokenType]]:
    """A piece for every row: llama.cpp finds the size of the vocabulary by counting them."""
    yield from map(_piece, tokenizer.pieces())
    for index in range(tokenizer.vocabulary, rows):
        yield f"[PAD{index}]", _PADDING_SCORE, TokenType.UNUSED


def _piece(piece: Piece) -> tuple[str, float, TokenType]:
    """A piece as llama.cpp matches it.

    What is given, not learned, it looks for in raw text, where a space is no U+2581 yet; of these
    only layout may be USER_DEFINED, which any text can spell: markers would forge a turn.
    """
    if piece.kind not in _GIVEN:
        return piece.text, piece.score, TokenType[piece.kind]
    is_marker = piece.kind == "USER_DEFINED" and not symbols.is_layout(piece.text)
    kind = "CONTROL" if is_marker else piece.kind
    return piece.text.replace("\u2581", " "), _GIVEN_SCORE, TokenType[kind]
