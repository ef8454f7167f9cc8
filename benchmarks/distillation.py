"""A student's step against a teacher's candidates, beside the same step on the text's tokens.

    python -m benchmarks.distillation [--rounds 5] [--candidates 256] [--shape cpu_step]

Shapes: `cpu_step` is that of cpu_step.py, `quickstart` the one of configs/quickstart_text.py.
Targets and weights are random, and in memory: teacher_store.py times the reading. Steps alternate
in one process, so that a noisy machine slows both; the ratio is what to quote, of processor time
where other programs run. Below the steps stands the loss alone, against the two forms of soft
targets (kernels/vocabulary/soft_target.py). The exit code is 1 where a student's step takes more
than `MOST` times the other's, by the median.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from rich.console import Console

from benchmarks.cpu_step import CONFIG, timed
from gemma_train.axes import activation
from gemma_train.config import RunConfig, load
from gemma_train.data.example import Batch
from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
from gemma_train.losses.distillation import Distillation, Stored
from gemma_train.mesh import make_mesh, start_runtime
from gemma_train.metrics.progress import Progress
from gemma_train.metrics.waiting import waiting
from gemma_train.placement import place
from gemma_train.training.state import TrainState, initial_state
from gemma_train.training.step import make_step
from gemma_train.zero3 import split

SHAPES = {"cpu_step": CONFIG, "quickstart": load("configs/quickstart_text.py")}
DISTILLATION = Distillation(teacher=Stored(folder="unused", weights="unused"))
MOST = 1.25  # times the step on text
Timers = dict[str, Callable[[], jax.Array]]


def random_batch(config: RunConfig, candidates: int) -> Batch:
    """Rows of one document each, and so many distinct candidates of every position."""
    random, vocabulary = np.random.default_rng(0), config.model.vocabulary
    shape = config.data.batch_rows, config.data.sequence_length
    tokens_bt = random.integers(0, vocabulary, shape, np.int32)
    # Distinct: every so many tokens one, from a beginning of its own.
    apart = vocabulary // candidates
    first_bt1 = random.integers(0, apart, (*shape, 1), np.int32)
    powers_btq = random.exponential(size=(*shape, candidates))
    return Batch(
        tokens_bt=tokens_bt,
        targets_bt=np.roll(tokens_bt, -1, axis=1),
        positions_bt=np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        segments_bt=np.ones(shape, np.int32),
        weights_bt=np.ones(shape, np.float32),
        candidates_btq=np.int32(first_bt1 + apart * np.arange(candidates)),
        probabilities_btq=np.float32(powers_btq / powers_btq.sum(-1, keepdims=True)),
    )


def step_of(config: RunConfig, batch: Batch, initial: TrainState) -> Callable[[], jax.Array]:
    """The trainer's own step; each call is one."""
    placed = place(batch, jax.sharding.get_mesh(), config.data.batch_rows)
    state, step = [jax.tree.map(jnp.copy, initial)], make_step(config)

    def call() -> jax.Array:
        state[0], scalars = step(state[0], placed)
        return scalars["loss"]

    return call


def steps(config: RunConfig, batch: Batch) -> Timers:
    """The step on the text's tokens, and the student's."""
    hard = replace(batch, candidates_btq=None, probabilities_btq=None)
    student = replace(config, loss=DISTILLATION)
    initial = initial_state(config)
    return {
        "text": step_of(config, hard, initial),
        "candidates": step_of(student, batch, initial),
    }


def losses(config: RunConfig, batch: Batch) -> Timers:
    """The loss of a step with its gradients, of the text and of candidates in either form."""
    mesh, model = jax.sharding.get_mesh(), config.model
    random = np.random.default_rng(0)

    def placed(letters: str, *shape: int) -> jax.Array:
        spec = split("vd", shape, mesh.shape) if letters == "vd" else activation(letters)
        return jax.device_put(random.standard_normal(shape, np.float32), NamedSharding(mesh, spec))

    states_btd = placed("btd", *batch.tokens_bt.shape, model.width)
    table_vd = placed("vd", model.vocabulary, model.width)
    batch = place(batch, mesh, config.data.batch_rows)
    hard = Targets(hard_bt=batch.targets_bt)
    soft = replace(
        hard, candidates_btq=batch.candidates_btq, probabilities_btq=batch.probabilities_btq
    )

    def loss_of(targets: Targets, **terms) -> Callable[[], jax.Array]:
        def loss(states_btd, table_vd, targets, weights_bt):
            chunk = config.loss.chunk if targets.is_hard else DISTILLATION.chunk
            terms_of_loss = LossTerms(chunk=chunk, **terms)
            return vocabulary_loss(states_btd, table_vd, targets, weights_bt, terms_of_loss)

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        return partial(compiled, states_btd, table_vd, targets, batch.weights_bt)

    return {
        "text": loss_of(hard),
        "scatter": loss_of(soft, soft_form="scatter"),
        "one_hot": loss_of(soft, soft_form="one_hot"),
    }


def told(title: str, make: Callable[[], Timers], rounds: int) -> float:
    """Time what is made by turns, and print each beside the first; progress goes beside it.

    Returns the last one's median over the first's.
    """
    print(f"\n{title}", flush=True)
    console = Console(stderr=True)
    with waiting("making its parameters", console):
        timers = make()
    for name, call in timers.items():
        with waiting(f"compiling {name}", console):
            jax.block_until_ready(call())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    with Progress(rounds, 0, console=console) as progress:  # no thread, which would be timed too
        for number in range(rounds):
            for name, call in timers.items():
                began = time.process_time()
                found[name].append((timed(call), time.process_time() - began))
            progress.update(number + 1, {})
    print(
        f"{'':14}{'best s':>9}{'median s':>10}{'/ first: best':>15}{'median':>8}{'processor':>11}"
    )
    firsts, median = None, 1.0
    for name, both in found.items():
        seconds, busy = zip(*both, strict=True)
        figures = min(seconds), statistics.median(seconds), statistics.median(busy)
        firsts = firsts or figures
        best, median, processor = (one / first for one, first in zip(figures, firsts, strict=True))
        print(
            f"{name:14}{figures[0]:9.3f}{figures[1]:10.3f}{best:15.3f}{median:8.3f}{processor:11.3f}"
        )
    return median


def main() -> int:
    parser = argparse.ArgumentParser(description="Distillation beside training on text.")
    parser.add_argument("--rounds", type=int, default=5, help="alternations")
    parser.add_argument("--candidates", type=int, default=256, help="of each position")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="one of them alone")
    arguments = parser.parse_args()
    start_runtime(CONFIG.mesh)
    jax.set_mesh(make_mesh(CONFIG.mesh))
    print(
        f"{arguments.candidates} candidates, {arguments.rounds} rounds, jax {jax.__version__}",
        flush=True,
    )
    ratios = []
    for name in arguments.shape or SHAPES:
        config = SHAPES[name]
        batch = random_batch(config, arguments.candidates)
        shape = f"{name}: {config.step_tokens:,} tokens, vocabulary {config.model.vocabulary:,}"
        ratios.append(told(f"step of {shape}", partial(steps, config, batch), arguments.rounds))
        told(f"loss of {shape}", partial(losses, config, batch), arguments.rounds)
    return int(max(ratios) > MOST)


if __name__ == "__main__":
    sys.exit(main())
