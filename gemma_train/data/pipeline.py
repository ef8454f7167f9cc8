"""From datasets on disk to batches: one stream of rows, whose position is one integer.

Row r of the stream is a function of the config and r alone, so that it is the same for any number
of hosts, threads and worker processes, and training resumes at any row. Reading is grain's, with
explicit ReadOptions: its defaults are five times slower on small elements (design/data.md 1.5).
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags
from jax import tree_util

from gemma_train import storage
from gemma_train.data.example import Batch, Row, padding, stack
from gemma_train.data.mixture import mix
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset, check_tokenizer
from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """A dataset of the training mixture."""

    path: str  # folder of a dataset that gemma-train prepare wrote, such as data/quickstart/train
    weight: float = 1.0  # share of the rows, relative to the other sources; 0 leaves it out

    def __post_init__(self):
        require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"weight of {self.path!r} is {self.weight}: must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how."""

    tokenizer: str  # path of the SentencePiece model that the datasets were made with
    train: tuple[TokenSource, ...]  # the mixture to train on
    held_out: tuple[str, ...] = ()  # folders of the datasets to evaluate on
    sequence_length: int = 2_048  # tokens in a row
    batch_rows: int = 8  # rows (sequences) in a step, over all devices
    shuffle_seed: int = 0  # another seed is another order of the same rows
    read_threads: int = 2  # threads that read batches ahead, per process; 0 reads when asked
    prefetch_batches: int = 8  # batches read ahead, per process
    worker_processes: int = 0  # processes that read ahead; 0 uses the threads alone

    def __post_init__(self):
        require(
            isinstance(self.train, tuple) and any(source.weight for source in self.train),
            f"data.train is {self.train!r}: give a tuple with a TokenSource of weight above 0",
        )
        require(
            isinstance(self.held_out, tuple),
            f"data.held_out is {self.held_out!r}: give a tuple of folders, as in ('data/x',)",
        )
        for name in ("sequence_length", "batch_rows", "prefetch_batches"):
            value = getattr(self, name)
            require(value >= 1, f"data.{name} is {value}: must be at least 1")
        for name in ("shuffle_seed", "read_threads", "worker_processes"):
            value = getattr(self, name)
            require(value >= 0, f"data.{name} is {value}: must be 0 or more")


class Batches(Iterator[Batch]):
    """An iterator of batches that reads ahead. `close` ends it, its threads and its processes."""

    def __init__(self, dataset: grain.IterDataset):
        self._iterator = iter(dataset)
        self._iterator.start_prefetch()

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = iter(())

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(config: DataConfig, *, start_row: int, batch_indices: Sequence[int]) -> Batches:
    """Endless training batches: the k-th has rows start_row + k * batch_rows + batch_indices.

    `batch_indices` are the rows of the global batch that this process needs, in the order wanted;
    a single process passes range(batch_rows). Raises `UserError` for datasets that are missing,
    damaged or made with another tokenizer.
    """
    require(start_row >= 0, f"start_row is {start_row}: must be 0 or more")
    source = _BatchSource(
        rows=training_rows(config),
        first_row=start_row,
        batch_rows=config.batch_rows,
        batch_indices=tuple(batch_indices),
        batches=(sys.maxsize - start_row) // config.batch_rows,
    )
    return _read_ahead(grain.MapDataset.source(source), config)


def training_rows(config: DataConfig) -> grain.MapDataset:
    """The endless stream of training rows: shuffled within each epoch of a source, then mixed."""
    used = [(index, source) for index, source in enumerate(config.train) if source.weight]
    opened = _open([source.path for _, source in used], config)
    components = []
    for (index, _), rows in zip(used, opened, strict=True):
        # `seed(s)` hashes s; `shuffle(seed=s)` would make epoch 1 of seed 0 epoch 0 of seed 1.
        seed = np.random.SeedSequence((config.shuffle_seed, index)).generate_state(1)[0]
        components.append(grain.MapDataset.source(rows).seed(int(seed)).shuffle().repeat())
    return mix(components, [source.weight for _, source in used])


def held_out_batches(
    config: DataConfig,
    *,
    batch_rows: int,
    maximum_rows: int | None = None,
    batch_indices: Sequence[int] | None = None,
) -> Batches:
    """Held-out rows in order, once; the last batch is filled with rows of weight 0.

    With `maximum_rows`, so many rows spread evenly over the datasets, the same at every call.
    `batch_indices` as in `batches`; all rows by default. Raises `UserError` like `batches`.
    """
    require(bool(config.held_out), "data.held_out is empty: name a dataset to evaluate on")
    sources = [grain.MapDataset.source(rows) for rows in _open(config.held_out, config)]
    rows = grain.MapDataset.concatenate(sources)
    chosen = _spread(len(rows), maximum_rows)
    source = _BatchSource(
        rows=_ChosenRows(rows=rows, chosen=chosen, padding=padding(config.sequence_length)),
        batch_rows=batch_rows,
        batch_indices=tuple(range(batch_rows) if batch_indices is None else batch_indices),
        batches=-(-len(chosen) // batch_rows),
    )
    return _read_ahead(grain.MapDataset.source(source), config)


def unigram_entropy(config: DataConfig, *, maximum_rows: int | None = None) -> float:
    """Nats a token of the held-out targets' own unigram distribution.

    The loss of a model that knows only how often each token occurs; over the same rows as
    `held_out_batches` with this `maximum_rows`, targets of weight 0 left out.
    """
    counts = np.zeros(0, np.int64)
    with held_out_batches(config, batch_rows=8, maximum_rows=maximum_rows) as stream:
        for batch in stream:
            found = np.bincount(batch.targets_bt[batch.weights_bt > 0], minlength=counts.size)
            found[: counts.size] += counts
            counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@dataclass(frozen=True, kw_only=True)
class _BatchSource:
    """Random access to the batches of one process."""

    rows: Any  # rows[index] is a Row
    first_row: int = 0
    batch_rows: int
    batch_indices: tuple[int, ...]
    batches: int

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
        first = self.first_row + index * self.batch_rows
        return stack([self.rows[first + offset] for offset in self.batch_indices])


@dataclass(frozen=True, kw_only=True)
class _ChosenRows:
    """Some rows of a dataset, then padding without end."""

    rows: Any
    chosen: Sequence[int]
    padding: Row

    def __getitem__(self, index: int) -> Row:
        return self.rows[self.chosen[index]] if index < len(self.chosen) else self.padding


def _open(paths: Sequence[str], config: DataConfig) -> list[Rows]:
    """The rows of these datasets, all made with the config's tokenizer."""
    sha256 = storage.sha256(storage.existing(config.tokenizer, "tokenizer"))
    datasets = [TokenDataset(path) for path in paths]
    for dataset in datasets:
        check_tokenizer(dataset.folder, dataset.description, config.tokenizer, sha256)
    return [Rows(dataset, config.sequence_length) for dataset in datasets]


def _spread(total: int, maximum: int | None) -> Sequence[int]:
    """At most `maximum` of `total` rows, evenly spread."""
    if maximum is None or maximum >= total:
        return range(total)
    return [index * total // maximum for index in range(maximum)]


def _read_ahead(dataset: grain.MapDataset, config: DataConfig) -> Batches:
    threads = min(config.read_threads, config.prefetch_batches)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=config.prefetch_batches if threads else 0
    )
    stream = dataset.to_iter_dataset(options)
    if config.worker_processes:
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only absl's own main parses
            flags.FLAGS.mark_as_parsed()
        workers = config.worker_processes
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers,
                per_worker_buffer_size=-(-config.prefetch_batches // workers),
            )
        ).map(_owned)
    return Batches(stream)


def _owned(batch: Batch) -> Batch:
    """A copy in our own memory: a worker's is unmapped when grain's array is collected."""
    return tree_util.tree_map(np.array, batch)
