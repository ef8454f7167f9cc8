"""The one error a user ever sees: a line that names the thing, its value and what would do."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what is wrong (field, file or record), the value found, what would do.
    The command line prints it without a traceback and exits with code 2.
    """


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
        raise UserError(f"{field}: {error}") from None
