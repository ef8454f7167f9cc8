"""Which shards a store is to have, which of them are there, and the sidecar when all are."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gemma_train import storage
from gemma_train.data.teacher_shards import (
    SIDECAR,
    Description,
    Head,
    TargetShard,
    check_origin,
    check_size,
    read_description,
    read_note,
    read_rows,
    shard_files,
    write_description,
)
from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to stand in a folder: shard k holds rows k * shard_rows and the next."""

    folder: str
    head: Head
    rows: np.ndarray  # int64 [n, 2]: place in the head's datasets, row of it
    stream_rows: int  # of a run's stream, whose first appearances these are

    @property
    def shards(self) -> int:
        """How many they are."""
        return -(-len(self.rows) // self.head.order.shard_rows)

    def rows_of(self, shard: int) -> np.ndarray:
        """The rows of one shard."""
        return self.rows[shard * self.head.order.shard_rows :][: self.head.order.shard_rows]

    def finished(self) -> dict[int, TargetShard]:
        """The shards that are there in full, by number.

        Raises `UserError` where what is there is damaged, or was made for another plan.
        """
        found = {}
        for number in range(self.shards):
            if note := read_note(self.folder, number):
                self._check_head(number, note[0])
                if self._holds(number, note[1]):
                    found[number] = note[1]
        return found

    def complete(self, finished: dict[int, TargetShard]) -> Description | None:
        """The sidecar's description, if it is there and speaks of all of the finished shards."""
        if len(finished) < self.shards or not (storage.path(self.folder) / SIDECAR).exists():
            return None
        there = read_description(self.folder)
        shards = dict(enumerate(there.shards))
        whole = all(shards.get(number) == shard for number, shard in finished.items())
        return there if whole and there.stream_rows >= self.stream_rows else None

    def conclude(self, finished: dict[int, TargetShard]) -> Description | None:
        """Write the sidecar if all shards are finished."""
        if len(finished) < self.shards:
            return None
        shards = tuple(finished[number] for number in range(self.shards))
        datasets = [read_rows(self.folder, n, shard)[:, 0] for n, shard in enumerate(shards)]
        counts = np.bincount(np.concatenate(datasets), minlength=len(self.head.datasets))
        description = Description(
            head=self.head,
            stream_rows=self.stream_rows,
            dataset_rows=tuple(counts.tolist()),
            shards=shards,
        )
        write_description(self.folder, description)
        return description

    def _check_head(self, number: int, there: Head) -> None:
        check_origin(self.folder, there.origin, self.head.origin)
        found = [
            f"{name} {one!r} there, {other!r} here"
            for (name, one), (_, other) in zip(_leaves(there), _leaves(self.head), strict=False)
            if one != other
        ]
        require(
            not found and len(_leaves(there)) == len(_leaves(self.head)),
            f"{str(shard_files(self.folder, number).note)!r} was made for other data "
            f"({'; '.join(found[:3]) or 'another number of datasets'}): name another "
            "loss.teacher.folder, or remove that one",
        )

    def _holds(self, number: int, shard: TargetShard) -> bool:
        """Whether a shard has all rows that it should: fewer, where a shorter run wrote it."""
        there, here = read_rows(self.folder, number, shard)[:, :2], self.rows_of(number)
        both = min(len(there), len(here))
        check_size(self.folder, number, shard)
        if (other := np.flatnonzero((there[:both] != here[:both]).any(axis=1))).size:
            row = int(other[0])
            require(
                False,
                f"{str(shard_files(self.folder, number).rows)!r} holds (dataset, row) "
                f"{tuple(there[row].tolist())} where {tuple(here[row].tolist())} is due: name "
                "another loss.teacher.folder, or remove that one",
            )
        return len(there) >= len(here)


def _leaves(head: Head) -> list[tuple[str, Any]]:
    """(name, value) of what decides which rows stand where, paths left out: folders may move."""
    order = [(f"data.{name}", value) for name, value in asdict(head.order).items()]
    return [*((f"dataset {d.path!r}", d.sha256) for d in head.datasets), *order]
