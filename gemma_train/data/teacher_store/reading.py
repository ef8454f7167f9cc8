"""A store of targets opened for reading: any row by (dataset, number), in any thread or process.

Whatever a record was made from is compared before it is used: its `Origin` when the store is
opened, the row's own tokens and borders whenever it is read.
"""

import os
from dataclasses import dataclass

import numpy as np

from gemma_train import storage
from gemma_train.data.example import Row
from gemma_train.data.teacher_store.codec import Codec, RowTargets
from gemma_train.data.teacher_store.shards import (
    AGAIN,
    check_size,
    read_description,
    read_rows,
    row_keys,
    shard_files,
)
from gemma_train.errors import Damaged, UserError, require
from gemma_train.run_files import RECORD


class TeacherStore:
    """Opening checks the sidecar, every shard's size and the checksums of the lists of rows.

    28 bytes a row stay in memory; records are read when they are asked for.
    """

    def __init__(self, folder: str, codec: Codec):
        check_folder(folder)
        self.folder, self.codec = folder, codec
        self._files = storage.OpenFiles()
        self.description = read_description(folder)
        indices = []
        for number, shard in enumerate(self.description.shards):
            check_size(folder, number, shard)
            indices.append(read_rows(folder, number, shard))
        index = np.concatenate(indices) if indices else np.zeros((0, 3), np.int64)
        starts = [np.append(0, one[:-1, 2]) for one in indices]
        keys = row_keys(index)
        order = np.argsort(keys)
        self._keys, self._ends = keys[order], index[order, 2]
        self._starts = np.concatenate([*starts, np.zeros(0, np.int64)])[order]
        rows = [shard.rows for shard in self.description.shards]
        self._shards = np.repeat(np.arange(len(rows), dtype=np.int32), rows)[order]

    def missing(self, dataset: int, numbers: np.ndarray) -> int:
        """How many of these rows of a dataset are not here."""
        rows = np.stack([np.full_like(numbers, dataset), numbers], axis=1)
        return int((~np.isin(row_keys(rows), self._keys)).sum())

    def rows_of(self, path: str, sha256: str) -> "TaughtRows":
        """The targets of the dataset whose dataset.json has this sum, wherever it lay then.

        Raises `UserError` where there are none.
        """
        datasets = self.description.head.lesson.datasets
        for place, dataset in enumerate(datasets):
            if dataset.sha256 == sha256:
                return TaughtRows(store=self, dataset=place, path=path)
        held = ", ".join(f"{d.path!r} (dataset.json {d.sha256[:12]}...)" for d in datasets)
        raise UserError(
            f"teacher store {self.folder!r} was made from {held}, not from {path!r} "
            f"({sha256[:12]}...): write another with gemma-train teacher, or give that source "
            "taught=False"
        )

    def read(self, dataset: int, number: int) -> RowTargets:
        """The targets of a row. Raises `Damaged` where they are, `UserError` if not here."""
        key = int(row_keys(np.array([[dataset, number]]))[0])
        place = int(np.searchsorted(self._keys, key))
        name = f"row {number:,} of dataset {self.description.head.lesson.datasets[dataset].path!r}"
        require(
            place < len(self._keys) and self._keys[place] == key,
            f"teacher store {self.folder!r} has no targets for {name}: run gemma-train teacher",
        )
        file = os.fspath(shard_files(self.folder, int(self._shards[place])).targets)
        start, end = int(self._starts[place]), int(self._ends[place])
        try:
            return self.codec.decode(self._files.read(file, start, end - start, AGAIN))
        except ValueError as error:
            raise Damaged(
                f"shard {file!r} is damaged: {name} cannot be read ({error}): {AGAIN}", file
            ) from None


def check_folder(folder: str) -> None:
    """Raise `UserError` for a file, a run, and a bucket, which would be read row by row."""
    require("://" not in folder, f"teacher store {folder!r} must be local: copy or mount it")
    require(
        not storage.path(folder).is_file(),
        f"teacher store {folder!r} is a file: name a folder as loss.teacher.folder",
    )
    require(
        not (storage.path(folder) / RECORD).exists(),
        f"teacher store {folder!r} is the folder of a run ({RECORD} is in it): name another as "
        "loss.teacher.folder",
    )


@dataclass(frozen=True, kw_only=True)
class TaughtRows:
    """A dataset's targets, for rows that hold its tokens already."""

    store: TeacherStore
    dataset: int
    path: str

    def fill(self, number: int, row: Row) -> None:
        """Write the candidates and probabilities of row `number`.

        Raises `UserError` where the targets were made from other tokens or documents.
        """
        found = self.store.read(self.dataset, number)
        self._compare("token", number, row.tokens, found.tokens)
        self._compare("loss weight", number, (row.weights > 0) * 1, found.taught * 1)
        assert row.candidates is not None and row.probabilities is not None
        row.candidates[found.taught] = found.candidates
        row.probabilities[found.taught] = found.probabilities

    def _compare(self, what: str, number: int, here: np.ndarray, there: np.ndarray) -> None:
        if (other := np.flatnonzero(here != there)).size:
            place = int(other[0])
            raise UserError(
                f"row {number:,} of dataset {self.path!r} has {what} {here[place]} at position "
                f"{place}, teacher store {self.store.folder!r} was made with {there[place]}: write "
                "another with gemma-train teacher"
            )
