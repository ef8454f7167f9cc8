"""How an image stands among the tokens: \\n\\n, its start, its soft tokens, its end, \\n\\n.

As Gemma 3 has it (google-deepmind/gemma, gm/vision/_token_utils.py; transformers,
processing_gemma3.py). Soft tokens have places and no ids: 0 stands there.
"""

from dataclasses import dataclass

from gemma_train.data.shards import ImageSpan
from gemma_train.errors import UserError
from gemma_train.tokenizer.symbols import END_OF_IMAGE, START_OF_IMAGE
from gemma_train.tokenizer.tokenizer import Tokenizer

_GAP = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Markup:
    """The ids around an image, and how many soft tokens stand between them."""

    before: tuple[int, ...]
    tokens: int
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: int) -> "Markup":
        """Raises `UserError` for a tokenizer without pieces for an image's ends."""
        gap = tokenizer.encode(_GAP)
        try:
            start, end = map(tokenizer.id_of, (START_OF_IMAGE, END_OF_IMAGE))
        except UserError:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has no piece {START_OF_IMAGE!r} or none "
                f"{END_OF_IMAGE!r}: for images take Gemma 3's, or one that gemma-train trained"
            ) from None
        return cls(before=(*gap, start), tokens=tokens, after=(end, *gap))

    @property
    def span(self) -> ImageSpan:
        """The lengths alone."""
        return ImageSpan(before=len(self.before), tokens=self.tokens, after=len(self.after))

    def put(self, ids: list[int]) -> int:
        """Append an image to a document's ids. Returns the place of its first soft token."""
        ids += self.before
        first = len(ids)
        ids += [0] * self.tokens
        ids += self.after
        return first
