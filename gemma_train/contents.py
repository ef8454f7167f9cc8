"""What small files hold: text, a JSON object; or `UserError`, whatever is there instead.

`cure` says in all of them what would do: 'remove it, and ...'.
"""

import json
from typing import Any

from etils import epath

from gemma_train.errors import Damaged
from gemma_train.storage import read_bytes

# What JSON's decoder raises: of bytes that are none, and of nesting beyond any use.
NO_JSON = (ValueError, RecursionError)


def read_text(file: epath.Path, cure: str) -> str:
    """The text of a file of UTF-8. Raises `Damaged` where it is missing, or none."""
    try:
        return read_bytes(file, cure).decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"{str(file)!r} is no text of UTF-8 (byte {error.start}): {cure}") from None


def read_object(file: epath.Path, cure: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `Damaged` where it is missing, or none.

    Integers beyond 64 bits are floats, as other languages have them.
    """
    try:
        found = json.loads(read_text(file, cure), parse_int=_integer)
    except NO_JSON as error:
        raise Damaged(f"{str(file)!r} is not JSON ({error}): {cure}") from None
    if not isinstance(found, dict):
        raise Damaged(f"{str(file)!r} holds no JSON object, but a {type(found).__name__}: {cure}")
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)
