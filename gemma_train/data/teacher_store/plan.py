"""Which shards a store still lacks for a run, and the sidecar when all are there.

What a sidecar speaks of is not touched again: a run that needs more rows, longer or in another
order, adds shards of those that are missing. A shard that lost its records is written once more.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from gemma_train import storage
from gemma_train.data.teacher_store.shards import (
    AGAIN,
    SIDECAR,
    Description,
    Head,
    Lesson,
    Note,
    Origin,
    TargetShard,
    TaughtDataset,
    check_origin,
    check_size,
    read_description,
    read_note,
    read_rows,
    row_keys,
    shard_files,
    write_description,
)
from gemma_train.errors import UserError, require

_ELSEWHERE = "finish it with the config that began it, or name another loss.teacher.folder"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be written into a folder."""

    folder: str
    head: Head
    there: Description | None  # what is in it, if it is a store already
    shards: dict[int, np.ndarray]  # int64 [n, 2] by number: place in the head's datasets, row of it
    stream_rows: int  # of the run's stream, for which these are needed

    def finished(self) -> dict[int, TargetShard]:
        """Those of the shards that are there in full, by number.

        Raises `UserError` where what is there is damaged, or was begun for another run.
        """
        found = {}
        for number in self.shards:
            note, files = read_note(self.folder, number), shard_files(self.folder, number)
            if note is not None and files.targets.exists() and files.rows.exists():
                self._check(number, note)
                found[number] = note.shard
        return found

    def conclude(self, finished: dict[int, TargetShard]) -> Description | None:
        """Write the sidecar if all shards are finished; what the store then holds."""
        if len(finished) < len(self.shards):
            return None
        if not self.shards:
            return self.there
        before = dict(enumerate(self.there.shards)) if self.there else {}
        shards = tuple(shard for _, shard in sorted((before | finished).items()))
        found = [read_rows(self.folder, n, shard)[:, 0] for n, shard in enumerate(shards)]
        number, datasets = np.concatenate(found), len(self.head.lesson.datasets)
        require(
            number.max(initial=0) < datasets,
            f"teacher store {self.folder!r} has rows of dataset {number.max(initial=0)}, and "
            f"learns from {datasets}: {AGAIN}",
        )
        counts = np.bincount(number, minlength=datasets)
        description = Description(
            head=self.head,
            stream_rows=self.stream_rows,
            dataset_rows=tuple(counts.tolist()),
            shards=shards,
        )
        write_description(self.folder, description)
        return description

    def _check(self, number: int, note: Note) -> None:
        name, there = str(shard_files(self.folder, number).note), note.head
        check_origin(self.folder, there.origin, self.head.origin)
        check_size(self.folder, number, note.shard)
        _check_datasets(name, there.lesson, self.head.lesson)
        rows = read_rows(self.folder, number, note.shard, cure=AGAIN)[:, :2]
        due = self.shards[number]
        if np.array_equal(rows, due):  # whatever run they were written for
            return
        _check_order(name, there, self.head)
        raise UserError(
            f"{name!r} was begun for another run: it holds {len(rows)} rows from (dataset, row) "
            f"{tuple(rows[:1].ravel().tolist())}, due are {len(due)} from "
            f"{tuple(due[0].tolist())}: {_ELSEWHERE}"
        )


def _check_datasets(note: str, there: Lesson, here: Lesson) -> None:
    """Raise `UserError` unless a shard's datasets are those that are due now, as far as both go."""
    for one, other in zip(there.datasets, here.datasets, strict=False):
        require(
            one.sha256 == other.sha256,
            f"{note!r} was begun for another run (SHA-256 of dataset.json of {one.path!r} "
            f"{one.sha256[:12]}... there, {other.path!r} {other.sha256[:12]}... here): "
            + _ELSEWHERE,
        )


def _check_order(note: str, there: Head, here: Head) -> None:
    """Raise `UserError` unless a shard was begun in this order, and in shards of this size."""
    began, due = asdict(there.lesson.order), asdict(here.lesson.order)
    other = [name for name in due if began[name] != due[name]]
    length, cure = here.origin.sequence_length, _ELSEWHERE
    if other == ["shard_rows"]:
        cure = (
            "finish it with the command that began it: --shard-tokens "
            f"{began['shard_rows'] * length}"
        )
    found = [f"data.{name} {began[name]!r} there, {due[name]!r} here" for name in other]
    if "shard_rows" in other:
        sizes = [order["shard_rows"] * length for order in (began, due)]
        found[other.index("shard_rows")] = "--shard-tokens {} there, {} here".format(*sizes)
    require(not found, f"{note!r} was begun for another run ({'; '.join(found)}): {cure}")


def plan_of(
    folder: str, origin: Origin, taught: Lesson, rows: np.ndarray, *, stream_rows: int
) -> Plan:
    """What a folder lacks of these rows of a lesson: new shards, and those that lost their records.

    Raises `UserError` where it holds a damaged store, or one of another origin.
    """
    there, lesson, shards, size = None, taught, {}, taught.order.shard_rows
    if (storage.path(folder) / SIDECAR).exists():
        there = read_description(folder)
        check_origin(folder, there.head.origin, origin)
        datasets = _merged(there.head.lesson.datasets, taught.datasets)
        lesson = replace(taught, datasets=datasets)
        held = [read_rows(folder, n, shard)[:, :2] for n, shard in enumerate(there.shards)]
        shards = {n: held[n] for n, shard in enumerate(there.shards) if _is_lost(folder, n, shard)}
        rows = _without(
            _placed(rows, taught.datasets, datasets),
            np.concatenate([np.zeros((0, 2), np.int64), *held]),
        )
    first = len(there.shards) if there else 0
    for number, start in enumerate(range(0, len(rows), size), first):
        shards[number] = rows[start : start + size]
    return Plan(
        folder=folder,
        head=Head(origin=origin, lesson=lesson),
        there=there,
        shards=shards,
        stream_rows=stream_rows,
    )


def _is_lost(folder: str, number: int, shard: TargetShard) -> bool:
    """Whether the records of a store's shard are gone. Raises `UserError` where they are cut."""
    if not shard_files(folder, number).targets.exists():
        return True
    check_size(folder, number, shard)
    return False


def _placed(
    rows: np.ndarray, before: tuple[TaughtDataset, ...], after: tuple[TaughtDataset, ...]
) -> np.ndarray:
    """Rows by their datasets' places in another list."""
    sums = [dataset.sha256 for dataset in after]
    places = np.array([sums.index(dataset.sha256) for dataset in before])
    return np.stack([places[rows[:, 0]], rows[:, 1]], axis=1)


def _without(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The rows that are none of the known ones."""
    return rows[~np.isin(row_keys(rows), row_keys(known))]


def _merged(
    there: tuple[TaughtDataset, ...], here: tuple[TaughtDataset, ...]
) -> tuple[TaughtDataset, ...]:
    """The store's datasets, where they lie now, and behind them those that it does not know yet."""
    known = {dataset.sha256 for dataset in there}
    now = {dataset.sha256: dataset for dataset in here}
    new = (dataset for dataset in here if dataset.sha256 not in known)
    return (*(now.get(dataset.sha256, dataset) for dataset in there), *new)
