"""What saving costs the loop: the quickstart saved every 20 steps, beside the same never saved.

    make saving     five minutes on two cores, saved to the disk of temporary files
    python -m benchmarks.saving FOLDER     the same elsewhere, memory as the C library has it

Steps of the two take turns, in blocks of 20 with one save each, in one process and on one mesh, so
that whatever else the machine does falls on both. The aim: at most 5 % of the step time. What is
counted is all that the loop waits, and all that the writing beside it takes from the steps.
"""

import dataclasses
import sys
import tempfile
import time

import jax
import numpy as np

from gemma_train.config import load
from gemma_train.data.example import Batch
from gemma_train.mesh import make_mesh, start_runtime
from gemma_train.placement import place
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.position import Position
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step

CONFIG, EVERY, ROUNDS, AIM = "configs/quickstart_text.py", 20, 24, 1.05


def main(disk: str | None = None) -> int:
    config = load(CONFIG)
    start_runtime(config.mesh)
    random, rows, length = (
        np.random.default_rng(0),
        config.data.batch_rows,
        config.data.sequence_length,
    )
    tokens = random.integers(0, config.model.vocabulary, (rows, length + 1), dtype=np.int32)
    batch = Batch(
        tokens_bt=tokens[:, :-1],
        targets_bt=tokens[:, 1:],
        positions_bt=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segments_bt=np.ones((rows, length), np.int32),
        weights_bt=np.ones((rows, length), np.float32),
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with tempfile.TemporaryDirectory(dir=disk) as folder, jax.set_mesh(mesh):
        config = dataclasses.replace(config, folder=folder)
        with Checkpoints(config) as checkpoints:
            state, step, placed = initial_state(config), make_step(config), place(batch, mesh, rows)
            taken = {"saved": [], "not saved": []}
            number, waited = 0, []
            for turn in range(ROUNDS + 1):
                for kind in ("not saved", "saved") if turn % 2 else ("saved", "not saved"):
                    begun = time.perf_counter()
                    for _ in range(EVERY):
                        state, scalars = step(state, placed)
                        number += 1
                        if kind == "saved" and number % EVERY == 1:
                            jax.block_until_ready(scalars)
                            held = time.perf_counter()
                            checkpoints.save(number, state, Position())
                            waited.append(time.perf_counter() - held)
                    jax.block_until_ready(scalars)
                    if kind == "saved":
                        checkpoints.wait()  # what it still takes counts here, not in the next block
                    if turn:  # the first compiles
                        taken[kind].append(time.perf_counter() - begun)
    ratios = np.divide(taken["saved"], taken["not saved"])
    share = np.median(waited[1:]) / np.median(taken["not saved"])
    print(
        f"{EVERY} steps with a save / without, {ROUNDS} rounds: "
        + ", ".join(f"{r:.3f}" for r in ratios)
    )
    best = min(taken["saved"]) / min(taken["not saved"])
    whole = sum(taken["saved"]) / sum(taken["not saved"])
    print(
        f"median {np.median(ratios):.3f}, best / best {best:.3f}, all / all {whole:.3f} "
        f"(aim: at most {AIM}); the loop itself waits {share:.1%}"
    )
    return int(np.median(ratios) > AIM)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
