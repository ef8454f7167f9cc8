"""One training step on a CPU against the floor: the step's own matrix products, timed alone.

    python benchmarks/cpu_step.py [--rounds 5] [--torch PYTHON]

Shape: 6 layers (5 local, 1 global), width 256, 4 query / 1 key-value heads of 64, hidden 1024,
vocabulary 32768, window 128, 8 x 512 tokens, float32, AdamW. Floor and step alternate in one
process, so that a noisy machine slows both; the ratio is what to quote. With --torch, a Python with
torch and transformers runs Hugging Face's Gemma 3 at the same shape, turn by turn with ours.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gemma_train.config import (
    ComputeConfig,
    DataConfig,
    GemmaConfig,
    OptimizerConfig,
    RunConfig,
    TokenSource,
)
from gemma_train.data.example import Batch
from gemma_train.mesh import make_mesh, start_runtime
from gemma_train.placement import place
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step

ROWS, LENGTH, WINDOW = 8, 512, 128
TOKENS = ROWS * LENGTH
MODEL = GemmaConfig(
    vocabulary=32_768,
    width=256,
    layers=6,
    query_heads=4,
    key_value_heads=1,
    head_dimension=64,
    hidden=1024,
    context=LENGTH,
    pattern=("local",) * 5 + ("global",),
    window=WINDOW,
    query_key_norm=True,
    post_norms=True,
    global_rope_base=1_000_000.0,
)
CONFIG = RunConfig(
    folder="unused",
    model=MODEL,
    data=DataConfig(
        tokenizer="unused",
        train=(TokenSource(path="unused"),),
        sequence_length=LENGTH,
        batch_rows=ROWS,
    ),
    steps=1000,
    optimizer=OptimizerConfig(peak_lr=1e-3),
    compute=ComputeConfig(dtype="float32", remat="none"),
)


class Floor:
    """Every matrix product of the step, forward and backward, at its shape; best layout of each."""

    def __init__(self) -> None:
        self.products: list[tuple[int, list[Callable[[], jax.Array]]]] = []
        random = np.random.default_rng(0)
        self._random = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
        width, hidden, head = MODEL.width, MODEL.hidden, MODEL.head_dimension
        queries, layers = MODEL.query_heads * head, MODEL.layers
        self._linear(layers, TOKENS, width, queries)
        self._linear(2 * layers, TOKENS, width, head)  # key and value
        self._linear(layers, TOKENS, queries, width)
        self._linear(2 * layers, TOKENS, width, hidden)  # gate and up
        self._linear(layers, TOKENS, hidden, width)
        blocks = LENGTH // WINDOW
        self._attention(layers - 1, ROWS * blocks, WINDOW, 2 * WINDOW)
        self._attention(1, ROWS, LENGTH, LENGTH)
        chunk = CONFIG.loss.chunk
        self._linear(TOKENS // chunk, chunk, width, MODEL.vocabulary)

    def _linear(self, count: int, rows: int, depth: int, width: int) -> None:
        x, w, g = self._random(rows, depth), self._random(depth, width), self._random(rows, width)
        self._add(count, [(lambda x, w: x @ w, x, w)])
        self._add(count, [(lambda g, w: g @ w.T, g, w)])
        self._add(count, [(lambda x, g: x.T @ g, x, g), (lambda x, g: g.T @ x, x, g)])

    def _attention(self, count: int, batch: int, queries: int, keys: int) -> None:
        rows, head = queries * MODEL.query_heads, MODEL.head_dimension
        q, k = self._random(batch, rows, head), self._random(batch, keys, head)
        p = self._random(batch, rows, keys)
        self._add(2 * count, [(lambda q, k: jnp.einsum("brh,bsh->brs", q, k), q, k)])
        self._add(2 * count, [(lambda p, k: jnp.einsum("brs,bsh->brh", p, k), p, k)])
        self._add(2 * count, [(lambda p, q: jnp.einsum("brs,brh->bsh", p, q), p, q)])

    def _add(self, count: int, layouts: list[tuple]) -> None:
        calls = []
        for product, *operands in layouts:
            compiled = jax.jit(product)
            calls.append(lambda compiled=compiled, operands=operands: compiled(*operands))
            calls[-1]().block_until_ready()
        self.products.append((count, calls))

    def seconds(self) -> float:
        """One timing of all of them."""
        return sum(
            count * min(timed(call) for call in calls for _ in range(2))
            for count, calls in self.products
        )


def timed(call: Callable[[], jax.Array]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def our_step() -> Callable[[], jax.Array]:
    """The trainer's own step on random tokens; each call is one step."""
    tokens_bt = np.random.default_rng(0).integers(0, MODEL.vocabulary, (ROWS, LENGTH), np.int32)
    batch = Batch(
        tokens_bt=tokens_bt,
        targets_bt=np.roll(tokens_bt, -1, axis=1),
        positions_bt=np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        segments_bt=np.ones((ROWS, LENGTH), np.int32),
        weights_bt=np.ones((ROWS, LENGTH), np.float32),
    )
    start_runtime(CONFIG.mesh)
    mesh = make_mesh(CONFIG.mesh)
    jax.set_mesh(mesh)
    state, step = [initial_state(CONFIG)], make_step(CONFIG)
    placed = place(batch, mesh, ROWS)

    def call() -> jax.Array:
        state[0], scalars = step(state[0], placed)
        return scalars["loss"]

    call().block_until_ready()
    return call


class Torch:
    """Hugging Face's step in another Python, one step each time it is asked."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("cpu_step_torch.py")
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description="A CPU training step against its floor.")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of floor and step")
    parser.add_argument("--torch", help="a Python with torch and transformers")
    arguments = parser.parse_args()
    step, floor = our_step(), Floor()
    timers = {"floor": floor.seconds, "gemma_train": lambda: timed(step)}
    if arguments.torch:
        timers["transformers"] = Torch(arguments.torch).seconds
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(arguments.rounds):
        for name, seconds in timers.items():
            found[name].append(seconds())
    print(f"{TOKENS} tokens a step, {arguments.rounds} rounds, jax {jax.__version__}")
    print(
        f"{'':14}{'best s':>9}{'median s':>10}{'tokens/s':>10}{'floor / it, best':>18}{'median':>8}"
    )
    for name, seconds in found.items():
        best, median = min(seconds), statistics.median(seconds)
        to_best = min(found["floor"]) / best
        to_median = statistics.median(found["floor"]) / median
        speed = TOKENS / best
        print(f"{name:14}{best:9.3f}{median:10.3f}{speed:10,.0f}{to_best:18.3f}{to_median:8.3f}")


if __name__ == "__main__":
    main()
