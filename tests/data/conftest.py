import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Batch
from gemma_train.data.pipeline import batches
from gemma_train.data.shards import SourceCounts
from gemma_train.data.token_writer import TokenWriter
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer

VOCABULARY = 600


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A small tokenizer of real text."""
    path = epath.Path(tmp_path_factory.mktemp("tokenizer") / "small.model")
    library = Path(sysconfig.get_path("stdlib"))
    texts = [file.read_text("utf-8") for file in sorted((library / "json").glob("*.py"))]
    train_tokenizer(texts, TokenizerConfig(path=str(path), vocabulary=VOCABULARY), path)
    return Tokenizer.load(str(path))


@pytest.fixture
def write_dataset(tokenizer) -> Callable[..., str]:
    """Writes documents, given as ids with their <bos> and <eos>, and returns the folder."""

    def write(folder: Path, documents: Sequence[Sequence[int]], shard_tokens: int = 2**20) -> str:
        writer = TokenWriter(epath.Path(folder), shard_tokens)
        for document in documents:
            writer.append(document)
        counts = SourceCounts(
            name="made",
            licence="CC0-1.0",
            documents=len(documents),
            tokens=sum(map(len, documents)),
            bytes=0,
            characters=0,
        )
        writer.finish(tokenizer, {}, [counts])
        return str(folder)

    return write


@pytest.fixture
def made_documents() -> Callable[..., list[list[int]]]:
    """Makes documents of random ids and lengths, `<bos>` to `<eos>`; some hold nothing else."""

    def make(seed: int = 0, count: int = 50, longest: int = 30) -> list[list[int]]:
        random = np.random.default_rng(seed)
        lengths = random.integers(0, longest, count)
        return [[2, *random.integers(3, VOCABULARY, length).tolist(), 1] for length in lengths]

    return make


@pytest.fixture
def config(write_dataset, made_documents, tokenizer, tmp_path) -> DataConfig:
    """A mixture of two datasets, and held-out text."""
    one = write_dataset(tmp_path / "one", made_documents(1, count=200), shard_tokens=900)
    two = write_dataset(tmp_path / "two", made_documents(2, count=90))
    held_out = write_dataset(tmp_path / "held_out", made_documents(3, count=40))
    return DataConfig(
        tokenizer=tokenizer.name,
        train=(TokenSource(path=one, weight=3), TokenSource(path=two, weight=1)),
        held_out=(held_out, two),
        sequence_length=16,
        batch_rows=6,
        read_threads=0,
        prefetch_batches=2,
    )


def take(config: DataConfig, count: int, start_row: int = 0, batch_indices=None) -> list[Batch]:
    indices = range(config.batch_rows) if batch_indices is None else batch_indices
    with batches(config, start_row=start_row, batch_indices=indices) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def documents_of(folder: str) -> list[np.ndarray]:
    tokens = np.fromfile(f"{folder}/tokens-00000.bin", "<u4")
    return np.split(tokens, np.fromfile(f"{folder}/tokens-00000.offsets", "<i8")[1:])
