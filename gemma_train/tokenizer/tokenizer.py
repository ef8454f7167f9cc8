"""The tokenizer: text to ids and back, for our own and for Gemma's released SentencePiece models.

SentencePiece matches user-defined pieces in raw text, so a web page with "<start_of_turn>" in it
would forge a turn. Unless `allow_control` is set we cut such text after its first character: no
part then holds the whole marker, and the parts are encoded as ordinary pieces. Whitespace runs and
HTML tags are user-defined too, and stay: they mean what they say.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from gemma_train import storage
from gemma_train.errors import UserError, require
from gemma_train.storage import read_bytes
from gemma_train.tokenizer import symbols


class Piece(NamedTuple):
    """A piece of the vocabulary, its score, and what SentencePiece takes it for."""

    text: str
    score: float
    kind: str  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE


class Tokenizer:
    """A loaded SentencePiece model.

    `vocabulary` is the number of pieces, `model` the bytes of the model file and `sha256` theirs;
    `bos`, `eos` and `pad` are ids found by the names of their pieces. Any text survives
    `decode(encode(text))`, but for a literal U+2581, which SentencePiece uses for the space and
    which becomes one.
    """

    def __init__(self, model: bytes, name: str = "tokenizer"):
        self.name = name
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            proto = sentencepiece_model_pb2.ModelProto.FromString(model)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (DecodeError, RuntimeError, ValueError):
            raise UserError(f"{name!r} is not a SentencePiece model") from None
        self.vocabulary = len(proto.pieces)
        require(self.vocabulary > 0, f"{name!r} is not a SentencePiece model: it has no pieces")
        self._ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
        garbled = any(isinstance(piece, bytes) for piece in self._ids)  # no UTF-8: left as it is
        require(not garbled, f"{name!r} is not a SentencePiece model: a piece is no text")
        self.pad, self.eos, self.bos = map(self.id_of, (symbols.PAD, symbols.EOS, symbols.BOS))
        self._control = _pattern(proto)

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Read a .model file, local or gs://. Raises `UserError` when missing or not a model."""
        return cls(read_bytes(storage.existing(path, "tokenizer"), "name another"), path)

    def id_of(self, piece: str) -> int:
        """The id of a piece such as `<end_of_turn>`. Raises `UserError` when there is none."""
        require(piece in self._ids, f"{self.name!r} has no piece {piece!r}: not a Gemma tokenizer")
        return self._ids[piece]

    def encode(
        self, text: str, *, bos: bool = False, eos: bool = False, allow_control: bool = False
    ) -> list[int]:
        """The ids of `text`, with `<bos>` before and `<eos>` after it if asked.

        Markers such as `<start_of_turn>` become control ids only with `allow_control`. Raises
        `UserError` on a lone surrogate, which is no Unicode text.
        """
        return self.encode_batch([text], bos=bos, eos=eos, allow_control=allow_control)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        bos: bool = False,
        eos: bool = False,
        allow_control: bool = False,
        threads: int = 1,
    ) -> list[list[int]]:
        """`encode` of every text, on several threads that do not hold Python's lock."""
        parts = [[text] if allow_control else self._split(text) for text in texts]
        try:
            flat = [part.encode() for split in parts for part in split]
        except UnicodeEncodeError as error:
            raise UserError(f"text is not Unicode: {error.reason}") from None
        encoded = self._processor.encode(flat, num_threads=threads)
        start, end = [self.bos] * bos, [self.eos] * eos
        pieces = iter(encoded)
        return [[*start, *chain.from_iterable(islice(pieces, len(split))), *end] for split in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; `<bos>`, `<eos>` and `<pad>` leave no trace, other markers show."""
        return self._processor.decode([int(index) for index in ids])

    def pieces(self) -> list[Piece]:
        """Every piece, in the order of the ids: for formats that keep a list of them."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        kinds = proto.SentencePiece.Type
        return [Piece(p.piece, p.score, kinds.Name(p.type)) for p in proto.pieces]

    def _split(self, text: str) -> list[str]:
        """Cut `text` after the first character of every control piece in it."""
        cuts = []
        while match := self._control.search(text, cuts[-1] if cuts else 0):
            cuts.append(match.start() + 1)
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def check_same_ids(own: str | None, asked: str, whose: str) -> None:
    """Raise `UserError` unless two model files give the same ids; what changes none may differ.

    `whose` says whose `own` is: "run 'x' was made with". A model that came without is believed.
    """
    if own is None:
        return
    one, other = Tokenizer.load(own), Tokenizer.load(asked)
    require(
        one.sha256 == other.sha256
        or [piece.text for piece in one.pieces()] == [piece.text for piece in other.pieces()],
        f"{whose} the tokenizer {own!r} ({one.sha256[:12]}), the data with {asked!r} "
        f"({other.sha256[:12]}): ids would mean other text; bring that tokenizer and its data back",
    )


def _pattern(proto: sentencepiece_model_pb2.ModelProto) -> re.Pattern[str]:
    """Matches the user-defined pieces that are not layout."""
    control = [
        re.escape(piece.piece)
        for piece in proto.pieces
        if piece.type == piece.USER_DEFINED and not symbols.is_layout(piece.piece)
    ]
    return re.compile("|".join(control) if control else r"(?!)")
