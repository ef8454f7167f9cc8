"""The tokenizer beside a model: found in any folder, written as transformers reads it."""

import json
from typing import Any

from etils import epath

from gemma_train import storage
from gemma_train.conversion.tensors import Weights
from gemma_train.run_files import TOKENIZER
from gemma_train.tokenizer import symbols
from gemma_train.tokenizer.tokenizer import Tokenizer

_CONFIG = "tokenizer_config.json"
# What a Hugging Face folder may hold besides; taken over as it is.
_FILES = (
    "tokenizer.json",
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION = "generation_config.json"
# Of a model that sees images: how pixels are prepared, and the soft token that is no word.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SOFT_TOKEN = "<image_soft_token>"


def find_tokenizer(folder: epath.Path) -> str | None:
    """The SentencePiece model in a folder."""
    file = folder / TOKENIZER
    return str(file) if file.exists() else None


def copy_tokenizer(weights: Weights, folder: epath.Path) -> None:
    """Put the SentencePiece model into a folder, if there is one.

    Raises `UserError` for what is none: a record from elsewhere may name any file of this machine.
    """
    if weights.tokenizer is not None:
        (folder / TOKENIZER).write_bytes(Tokenizer.load(weights.tokenizer).model)


def write_huggingface_tokenizer(weights: Weights, folder: epath.Path) -> dict[str, Any]:
    """Write tokenizer and generation config as transformers reads them; returns the special ids.

    A Hugging Face source's own files are copied, if its tokenizer stays. Otherwise they are made
    from the SentencePiece model; without one there is no tokenizer, and the ids are Gemma's.
    """
    source = storage.path(weights.source)
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    copy_tokenizer(weights, folder)
    if weights.format == "hf" and weights.tokenizer in (None, find_tokenizer(source)):
        of_images = PROCESSOR_FILES if weights.config.vision else ()
        for name in (*_FILES, *of_images, _GENERATION):
            if (source / name).exists():
                (source / name).copy(folder / name)
    if weights.tokenizer is not None and not (folder / _CONFIG).exists():
        tokenizer = Tokenizer.load(weights.tokenizer)
        ids = {
            "pad_token_id": tokenizer.pad,
            "eos_token_id": tokenizer.eos,
            "bos_token_id": tokenizer.bos,
        }
        dump(folder / _CONFIG, _tokenizer_config(tokenizer, weights.config.vision is not None))
    if not (folder / _GENERATION).exists():
        dump(folder / _GENERATION, ids)
    return ids


def _tokenizer_config(tokenizer: Tokenizer, sees_images: bool) -> dict[str, Any]:
    """Without the list of given pieces transformers would split long runs of spaces its own way."""
    added = {
        str(index): {
            "content": piece.text,
            "lstrip": False,
            "rstrip": False,
            "single_word": False,
            "normalized": not piece.text.strip("\u2581"),
            "special": piece.kind != "USER_DEFINED" or piece.text.endswith("_of_turn>"),
        }
        for index, piece in enumerate(tokenizer.pieces())
        if piece.kind in ("CONTROL", "UNKNOWN", "USER_DEFINED")
    }
    images: dict[str, Any] = {}
    if sees_images:
        for marker in symbols.IMAGE_MARKERS:
            added[str(tokenizer.id_of(marker))]["special"] = True
        soft = {"content": SOFT_TOKEN, "normalized": False, "special": True}
        added[str(tokenizer.vocabulary)] = {**added[str(tokenizer.bos)], **soft}
        start, end = symbols.IMAGE_MARKERS
        named = {"boi_token": start, "eoi_token": end, "image_token": SOFT_TOKEN}
        images = {**named, "extra_special_tokens": named, "processor_class": "Gemma3Processor"}
    return {
        **images,
        "tokenizer_class": "GemmaTokenizer",
        "pad_token": symbols.PAD,
        "eos_token": symbols.EOS,
        "bos_token": symbols.BOS,
        "unk_token": symbols.UNKNOWN,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }


def dump(file: epath.Path, content: dict[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
