"""Sidecars: what a folder's other files hold, as a dataclass in JSON, with a format version.

Reading one raises nothing but `UserError`, whatever its bytes are: each field is held to its type.
"""

from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from etils import epath

from gemma_train import storage
from gemma_train.errors import Damaged, UserError

_MOST = 2**63 - 1  # NumPy's largest integer
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class OtherVersion(UserError):
    """A sidecar that another release wrote, or one whose version is damaged: nobody can tell."""


class _Version(msgspec.Struct):
    format_version: int


def write(file: epath.Path, record: Any, version: int) -> None:
    """Write a dataclass whole or not at all."""
    content = msgspec.json.encode({"format_version": version, **asdict(record)})
    storage.write_whole(file, msgspec.json.format(content, indent=1) + b"\n")


def read[Record](file: epath.Path, kind: type[Record], version: int, cure: str) -> Record:
    """What `write` wrote. Raises `OtherVersion`, and `Damaged` for what is garbled.

    `cure` says what would do: 'remove that file and ...'.
    """
    content = storage.read_bytes(file, cure)
    try:
        found = msgspec.json.decode(content, type=_Version).format_version
        if found != version:
            raise OtherVersion(
                f"{str(file)!r} has format version {found}, this release reads {version}: {cure}"
            )
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{str(file)!r} is garbled ({error}): {cure}") from None
