"""Stores of made-up targets, which follow from the tokens of their rows."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zstandard

from gemma_train.data.config import DataConfig
from gemma_train.data.example import Layout, Row
from gemma_train.data.lesson import lesson, taught_rows
from gemma_train.data.pipeline import batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset
from gemma_train.data.teacher_store.codec import codec
from gemma_train.data.teacher_store.plan import Plan, plan_of
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import (
    Origin,
    write_shard,
)
from gemma_train.samplers import TopK

LENGTH, VOCABULARY, SAMPLER = 16, 600, TopK(candidates=4)
CODEC = codec(SAMPLER, vocabulary=VOCABULARY, length=LENGTH)
ORIGIN = Origin(
    tokenizer_sha256="0" * 64,
    vocabulary=VOCABULARY,
    sequence_length=LENGTH,
    sampler=repr(SAMPLER),
    temperature=1.0,
    seed=0,
    teacher="runs/large",
    parameters_sha256="1" * 64,
    parameters=1000,
    dtype="float32",
)


def made_targets(row: Row) -> Row:
    """A row with targets that follow from its own tokens."""
    full = Layout(length=LENGTH, candidates=SAMPLER.candidates).padding(1).row(0)
    for one, other in zip(full[:5], row[:5], strict=True):
        one[:] = other
    steps = np.arange(SAMPLER.candidates)
    full.candidates[:] = (row.tokens[:, None] + 7 * steps) % VOCABULARY
    full.probabilities[:] = [0.7, 0.2, 0.08, 0.02]
    return full


def planned(config: DataConfig, folder: Path, stream_rows: int, shard_rows: int = 10) -> Plan:
    found = lesson(config, shard_rows)
    rows = taught_rows(config, found, stream_rows)
    return plan_of(str(folder), ORIGIN, found, rows, stream_rows=stream_rows)


def write(plan: Plan, config: DataConfig, shards=None) -> None:
    """Write shards (all, unless they are named) and, if all are there, the sidecar."""
    paths = [dataset.path for dataset in plan.head.lesson.datasets]
    datasets = [Rows(TokenDataset(path), LENGTH) for path in paths]
    folder = Path(plan.folder)
    folder.mkdir(exist_ok=True)
    for number in plan.shards if shards is None else shards:
        rows = plan.shards[number]
        full = [made_targets(datasets[dataset][row]) for dataset, row in rows.tolist()]
        records = [CODEC.encode(row) for row in full]
        tokens = sum(int((row.weights > 0).sum()) for row in full)
        write_shard(plan.folder, number, plan.head, rows=rows, records=records, tokens=tokens)
    plan.conclude(plan.finished())


def take(config: DataConfig, count: int, folder: Path | None = None, indices=None) -> list:
    store = TeacherStore(str(folder), CODEC) if folder else None
    indices = range(config.batch_rows) if indices is None else indices
    with batches(config, start_row=0, batch_indices=indices, teacher=store) as stream:
        return [next(stream) for _ in range(count)]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
    file.write_bytes(b"{" if how == "garbled" else content[:-3] if how == "cut" else content)
    if how == "missing":
        file.unlink()


def record_of(planes: Iterable[bytes]) -> bytes:
    """A record of these byte planes, all its checksums right."""
    frames = zstandard.ZstdCompressor(write_checksum=True)
    parts = [frames.compress(plane) for plane in planes]
    return np.array([len(part) for part in parts], "<u4").tobytes() + b"".join(parts)


def planes_of(record: bytes) -> list[bytes]:
    """The byte planes of a record."""
    count, end = 0, 0
    while 4 * count + end != len(record):
        count += 1
        lengths = np.frombuffer(record[: 4 * count], "<u4")
        end = int(lengths.sum())
    begins = 4 * count + np.cumsum(lengths) - lengths
    frames = zstandard.ZstdDecompressor()
    return [frames.decompress(record[a:][:b]) for a, b in zip(begins, lengths, strict=True)]
