"""The errors that a user sees: one line that names the thing, its value and what would do.

Each kind ends a command with an exit code of its own, for whoever starts it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

_LONGEST = 2_000  # characters of a message: what it tells of a file may be of any length


class UserError(Exception):
    """A mistake that the user can mend: the same at every start.

    The message is one line: what is wrong (field, file or record), the value found, what would do.
    The command line prints it without a traceback and exits with the error's code. What it tells
    of a file may be anything: it is made one line, and what a terminal would obey is told instead.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Damaged(UserError):
    """A file does not hold what was written to it: truncated, changed or gone."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file  # its name, where one file is known to be at fault


class Unrecoverable(UserError):
    """A run has tried what it may try, and starting it again would end the same way."""

    exit_code = 3


class FaultyHardware(UserError):
    """Two results of one program, or a state that is not the one saved: the machines are to be
    replaced, the run goes on."""

    exit_code = 4


class Stalled(UserError):
    """Something gave no answer in time; another start may find it well."""

    exit_code = 5


class Elsewhere(UserError):
    """Another process of the run failed by a fault of the program's; it shows the traceback."""

    exit_code = 1


def one_line(text: str) -> str:
    """The text as one line that can be printed, its middle left out where it is very long."""
    if len(text) > _LONGEST:
        left_out = len(text) - _LONGEST
        half = _LONGEST // 2
        text = f"{text[:half]} [... {left_out:,} characters ...] {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character in "\n\r" else ascii(character)[1:-1]


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


@contextmanager
def asked_by(field: str) -> Iterator[None]:
    """Let the errors of what a field names begin with that field."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{field}: {error}") from None
