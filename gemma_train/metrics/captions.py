"""What a run said of held-out images, kept in its folder for its report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
from etils import epath

from gemma_train import storage
from gemma_train.errors import UserError
from gemma_train.storage import read_bytes


@dataclass(frozen=True, kw_only=True)
class Caption:
    """An image's true caption, and what was said of it."""

    image: str  # the SHA-256 of its file, hexadecimal
    caption: str
    said: str
    right: bool
    picture: str = ""  # the image, small, as PNG in base64; "" where it is not kept


def write(file: epath.Path, captions: Sequence[Caption]) -> None:
    """Write them whole or not at all."""
    content = msgspec.json.encode([asdict(caption) for caption in captions])
    storage.write_whole(file, msgspec.json.format(content, indent=1) + b"\n")


def read(file: epath.Path) -> list[Caption]:
    """What `write` wrote. Raises `UserError` for anything else."""
    content = read_bytes(file, "mend or delete it")
    try:
        return msgspec.json.decode(content, type=list[Caption])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file} holds no captions ({error}): mend or delete it") from None
