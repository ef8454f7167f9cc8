"""What a source gives: documents of texts and images, and the counts of what was none."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from etils import epath

from gemma_train.errors import one_line
from gemma_train.tokenizer.symbols import IMAGE_PLACEHOLDERS

_EXAMPLES = 3  # that are kept of each kind


@dataclass(frozen=True, slots=True)
class Document:
    """Texts and the bytes of image files, in their order; no text is empty or follows another."""

    parts: tuple[str | bytes, ...]
    size: int  # bytes of UTF-8
    file: epath.Path
    record: int | str  # its number from 1, or its name; 0 is the whole file

    @property
    def text(self) -> str:
        """All texts, end to end."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[bytes]:
        return [part for part in self.parts if isinstance(part, bytes)]

    @property
    def content(self) -> bytes:
        """What it is known by: its first image, whose captions then stay together, or its text."""
        return next(iter(self.images), None) or self.text.encode()

    @property
    def place(self) -> str:
        """Where it stands, for a person to find."""
        return place(self.file, self.record)


def mixed_document(parts: Iterable[str | bytes], file: epath.Path, record: int | str) -> Document:
    """A document out of texts and images.

    Raises `ValueError` where it is empty, is no Unicode, or has a placeholder of an image in its
    text: images come as images only.
    """
    joined = joined_texts(parts)
    texts = [part for part in joined if isinstance(part, str)]
    for text in texts:
        for placeholder in IMAGE_PLACEHOLDERS:
            if placeholder in text:
                raise ValueError(f"its text has {placeholder!r}: an image is given as an image")
    if not joined:
        raise ValueError("is empty")
    return Document(tuple(joined), sum(len(text.encode()) for text in texts), file, record)


def joined_texts[Image](parts: Iterable[str | Image]) -> list[str | Image]:
    """The same parts, texts that follow each other in one and none of them empty."""
    joined: list[str | Image] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(before := joined[-1], str):
            joined[-1] = before + part
        elif not isinstance(part, str) or part:
            joined.append(part)
    return joined


def place(file: epath.Path, record: int | str) -> str:
    """A record's place in words."""
    if not record:
        return f"{file} file"
    return f"{file} record {record}" if isinstance(record, int) else f"{file} record {record!r}"


@dataclass
class Skipped:
    """What a source gave that is no document: counts, and the first few by file and record."""

    malformed: int = 0
    short: int = 0
    images: int = 0  # documents left out for an image that is not taken
    examples: list[str] = field(default_factory=list)

    def add(self, file: epath.Path, record: int | str, reason: object) -> None:
        """Count one malformed record."""
        self.malformed += 1
        self._keep(self.malformed, place(file, record), reason)

    def add_image(self, where: str, reason: object) -> None:
        """Count a document at this place that has an image which is not taken."""
        self.images += 1
        self._keep(self.images, where, reason)

    def told(self, source: str, *, left_out: str) -> list[str]:
        """In lines, ahead of the examples; `left_out` says what the `images` are counts of."""
        kinds = (
            (self.short, "documents shorter than the minimum"),
            (self.malformed, "unreadable records left out"),
            (self.images, left_out),
        )
        lines = [f"source {source!r}: {count:,} {words}" for count, words in kinds if count]
        return lines + [f"    {example}" for example in self.examples]

    def _keep(self, number: int, where: str, reason: object) -> None:
        if number <= _EXAMPLES:
            self.examples.append(one_line(f"{where}: {' '.join(str(reason).split())}"))


def check_field(name: str, present: Iterable[str]) -> None:
    """Raise `ValueError`, with the fields that there are, unless one is among them."""
    if name not in present:
        raise ValueError(f"has no field {name!r}, but {', '.join(map(repr, present)) or 'none'}")


def as_text(raw: object, name: str) -> str:
    """The text of a field: a string, or bytes of UTF-8. Raises `ValueError` for anything else."""
    if isinstance(raw, bytes):
        return raw.decode("utf-8-sig")
    if not isinstance(raw, str):
        raise ValueError(f"field {name!r} is {type(raw).__name__}, not text")
    return raw
