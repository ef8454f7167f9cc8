"""How fast batches come, against reading the same bytes with NumPy alone; a table in one run.

    python benchmarks/data.py

The plain reading copies the same windows of tokens, in order, out of the same shard, memory-mapped;
`batches` also shuffles, mixes, and makes targets, positions, segments and weights (20 bytes a token
instead of 4). Below it: what comparing the blocks costs a first pass over a dataset's rows.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Layout
from gemma_train.data.pipeline import batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import SourceCounts, TokenDataset
from gemma_train.data.token_writer import TokenWriter
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer

TOKENS = 32_000_000
MEAN_DOCUMENT = 1_000
SECONDS = 3.0


def make_dataset(folder: Path) -> DataConfig:
    """Random tokens in documents of random lengths, and a tokenizer to go with them."""
    model = epath.Path(folder / "t.model")
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(97, 123, 6))) for _ in range(500)]
    train_tokenizer([" ".join(words)], TokenizerConfig(path=str(model), vocabulary=512), model)
    writer = TokenWriter(epath.Path(folder / "train"), 2**24)
    lengths = random.geometric(1 / MEAN_DOCUMENT, TOKENS // MEAN_DOCUMENT) + 2
    for length in lengths:
        document = random.integers(3, 512, length)
        document[0], document[-1] = 2, 1
        writer.append(document)
    counts = SourceCounts(
        name="random",
        licence="CC0-1.0",
        documents=len(lengths),
        tokens=int(lengths.sum()),
        bytes=0,
        characters=0,
    )
    writer.finish(Tokenizer.load(str(model)), {}, [counts])
    return DataConfig(
        tokenizer=str(model), train=(TokenSource(path=str(folder / "train")),), sequence_length=1
    )


def tokens_per_second(next_batch: Callable[[], int]) -> float:
    """Tokens a second over `SECONDS`, after one batch to warm up."""
    next_batch()
    tokens, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        tokens += next_batch()
    return tokens / elapsed


def plain(folder: Path, length: int, rows: int) -> Callable[[], int]:
    """The same windows with NumPy alone."""
    tokens = np.memmap(folder / "train" / "tokens-00000.bin", "<u4", mode="r").view(np.ndarray)
    position = 0

    def next_batch() -> int:
        nonlocal position
        windows = []
        for _ in range(rows):
            position = position + length if position + 2 * length < tokens.size else 0
            windows.append(tokens[position : position + length + 1].astype(np.int32))
        return rows * (np.stack(windows).shape[1] - 1)

    return next_batch


def passes(folder: Path, length: int) -> tuple[float, float]:
    """Seconds of processor time that the rows of a dataset take, in random order: a first pass,
    which compares each block with its checksum, and the best of three that follow."""
    rows = Rows(TokenDataset(str(folder / "train")), length)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    row, seconds = Layout(length=length).padding(1).row(0), []
    for _ in range(4):
        began = time.process_time()
        for number in order:
            rows.fill(number, row)
        seconds.append(time.process_time() - began)
    return seconds[0], min(seconds[1:])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        config = make_dataset(Path(name))
        print(f"{'row':>7} {'rows':>5}  {'reader':<30} {'Mtokens/s':>9}  {'of plain':>8}")
        for length, rows in ((2_048, 16), (32_768, 1)):
            base = tokens_per_second(plain(Path(name), length, rows))
            print(f"{length:>7} {rows:>5}  {'NumPy alone':<30} {base / 1e6:>9.1f}  {1:>8.2f}")
            for threads, workers in ((0, 0), (2, 0), (0, 1)):
                chosen = DataConfig(
                    tokenizer=config.tokenizer,
                    train=config.train,
                    sequence_length=length,
                    batch_rows=rows,
                    read_threads=threads,
                    worker_processes=workers,
                )
                with batches(chosen, start_row=0, batch_indices=range(rows)) as stream:
                    speed = tokens_per_second(lambda s=stream: next(s).tokens_bt.size)
                reader = f"batches, {threads} threads, {workers} workers"
                ratio = speed / base
                print(f"{length:>7} {rows:>5}  {reader:<30} {speed / 1e6:>9.1f}  {ratio:>8.2f}")
        for length in (2_048, 32_768):
            first, later = passes(Path(name), length)
            print(f"rows of {length:,}: the first pass takes {first / later:.2f} of a later one")


if __name__ == "__main__":
    main()
