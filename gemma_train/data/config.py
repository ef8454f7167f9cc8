"""What is read and how: the mixture to train on, the held-out text, rows, batches, threads."""

import math
from dataclasses import dataclass
from typing import Literal

from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """A dataset of the training mixture."""

    path: str  # folder of a dataset that gemma-train prepare wrote, such as data/quickstart/train
    weight: float = 1.0  # share of the rows, relative to the other sources; 0 leaves it out
    taught: bool = True  # whether a distilled run's teacher speaks of its rows, or the text alone

    def __post_init__(self):
        require(
            math.isfinite(self.weight) and self.weight >= 0,
            f"weight of {self.path!r} is {self.weight}: must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Images in rows: where their embeddings are, and the room that each row has for them."""

    store: str  # folder of embeddings that gemma-train embed wrote, such as data/mine/images
    per_row: int = 4  # most images of a row; each takes its room whether it is there or not

    def __post_init__(self):
        require(bool(self.store), "data.images.store is empty: name a folder of embeddings")
        require(
            self.per_row >= 1,
            f"data.images.per_row is {self.per_row}: must be at least 1 (data.images=None is text)",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how."""

    tokenizer: str  # path of the SentencePiece model that the datasets were made with
    train: tuple[TokenSource, ...]  # the mixture to train on
    held_out: tuple[str, ...] = ()  # folders of the datasets to evaluate on
    images: ImageRows | None = None  # where datasets have images; None reads text alone
    sequence_length: int = 2_048  # tokens in a row
    batch_rows: int = 8  # rows (sequences) in a step, over all devices
    shuffle_seed: int = 0  # another seed is another order of the same rows
    read_threads: int = 2  # threads that read batches ahead, per process; 0 reads when asked
    prefetch_batches: int = 8  # batches read ahead, per process
    worker_processes: int = 0  # processes that read ahead; 0 uses the threads alone
    damaged: Literal["refuse", "skip"] = "refuse"  # rows to train on that are: stop, or leave out
    timeout_minutes: float = 30.0  # without a batch, after which the run stops and says where

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
        require(
            self.damaged in ("refuse", "skip"),
            f"data.damaged is {self.damaged!r}: choose 'refuse' or 'skip'",
        )
        require(
            0 < self.timeout_minutes < math.inf,
            f"data.timeout_minutes is {self.timeout_minutes}: must be above 0",
        )
