"""Training a SentencePiece tokenizer with Gemma's settings and symbols.

BPE with byte fallback, single digits, no normalisation and whitespace kept, which is what the
Gemma reports describe. The same text gives the same file, byte for byte: nothing is sampled, and
the number of threads is fixed, since the model file records it.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from gemma_train import storage
from gemma_train.errors import UserError, require
from gemma_train.tokenizer import symbols

_LONGEST_LINE = (
    4_000  # characters; longer lines are cut, since SentencePiece drops what is too long
)
_CHARACTER_SHARE = 8  # single characters may take one piece in so many; rarer ones become bytes


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to train."""

    path: str  # where the .model file goes, local or gs://
    vocabulary: int = 4_096  # pieces in all: symbols, 256 bytes and learned pieces
    maximum_training_bytes: int = 10_000_000  # of text to learn from; each source gives its share

    def __post_init__(self):
        require(bool(self.path), "tokenizer.path is empty: name the .model file to write")
        require(
            symbols.SMALLEST_VOCABULARY <= self.vocabulary <= 2**20,
            f"tokenizer.vocabulary is {self.vocabulary}: choose between "
            f"{symbols.SMALLEST_VOCABULARY} and {2**20}",
        )
        require(
            self.maximum_training_bytes > 0,
            f"tokenizer.maximum_training_bytes is {self.maximum_training_bytes}: must be above 0",
        )


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, target: epath.Path) -> None:
    """Learn `config.vocabulary` pieces from the first `maximum_training_bytes` and write `target`.

    Raises `UserError` when there is too little text for so many pieces.
    """
    chosen = list(_first_bytes(texts, config.maximum_training_bytes))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(chosen),
            model_writer=model,
            vocab_size=config.vocabulary,
            character_coverage=_coverage(chosen, config.vocabulary),
            user_defined_symbols=list(symbols.given_symbols(config.vocabulary)),
            **_GEMMA_SETTINGS,
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer.vocabulary {config.vocabulary} cannot be learned from "
            f"{sum(map(len, chosen)):,} characters: {_remedy(str(error))}"
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(target, place_image_markers(model.getvalue()))


def place_image_markers(model: bytes, at: int = symbols.GEMMA_3_IMAGE_ID) -> bytes:
    """Move the image markers to id `at` if the vocabulary is large enough, else change nothing."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    if len(proto.pieces) < at + 3:
        return model
    markers = [piece for piece in proto.pieces if piece.piece in symbols.IMAGE_MARKERS]
    others = [piece for piece in proto.pieces if piece.piece not in symbols.IMAGE_MARKERS]
    ordered = others[:at] + markers + others[at:]
    del proto.pieces[:]
    proto.pieces.extend(ordered)
    return proto.SerializeToString(deterministic=True)


_GEMMA_SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": symbols.PAD,
    "eos_piece": symbols.EOS,
    "bos_piece": symbols.BOS,
    "unk_piece": symbols.UNKNOWN,
    "max_sentence_length": 4 * _LONGEST_LINE,
    "num_threads": 8,
    "minloglevel": 2,
}


def _first_bytes(texts: Iterable[str], maximum: int) -> Iterator[str]:
    for text in texts:
        yield text
        maximum -= len(text.encode())
        if maximum <= 0:
            return


def _remedy(error: str) -> str:
    """What would do, out of SentencePiece's message."""
    if most := re.search(r"value <= (\d+)", error):
        return f"choose at most {most[1]}, or give more text"
    if least := re.search(r"required_chars. \d+ vs (\d+)", error):
        return f"its characters need {least[1]}, choose more than that"
    return "there is no text" if "sentences_.empty" in error else error


def _lines(texts: list[str]) -> Iterator[str]:
    """Non-empty lines: newlines are pieces of their own, so nothing is learned across them."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE]


def _coverage(texts: list[str], vocabulary: int) -> float:
    """The share of characters to keep as pieces: 0.9995, less where they would fill the pieces.

    SentencePiece takes no less than 0.98.
    """
    counts = Counter()
    for text in texts:
        counts.update(text)
    kept = sum(count for _, count in counts.most_common(vocabulary // _CHARACTER_SHARE))
    return min(0.9995, max(0.98, kept / max(1, counts.total())))
