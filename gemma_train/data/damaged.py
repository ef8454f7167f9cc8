"""What becomes of rows of the training stream that cannot be read: `data.damaged`."""

import logging
from typing import Literal

from gemma_train.data.example import Row, RowStream
from gemma_train.errors import Damaged

_log = logging.getLogger(__name__)


class SparedRows:
    """A stream in which a damaged row ends the run, or stays padding: weight 0, no token.

    Places of other rows do not move. Each file that is skipped in is told once, on standard error.
    """

    def __init__(self, rows: RowStream, policy: Literal["refuse", "skip"]):
        self._rows, self.policy = rows, policy
        self._told: set[str] = set()

    def place(self, index: int) -> str:
        """Where the row comes from."""
        return self._rows.place(index)

    def fill(self, index: int, row: Row) -> None:
        """Write the row into arrays of padding. Raises `Damaged` unless the policy is to skip."""
        try:
            self._rows.fill(index, row)
        except Damaged as error:
            if self.policy == "refuse":
                raise Damaged(
                    f"{error}; or train without its rows: data.damaged='skip'", error.file
                ) from None
            row.clear()
            self._tell(error)

    def _tell(self, error: Damaged) -> None:
        about = error.file or str(error)
        if about not in self._told:
            self._told.add(about)
            _log.warning(
                "data.damaged='skip': rows that need it are left out, and counted as damaged_rows: "
                "%s",
                error,
            )
