"""What a stored teacher takes on disk, loses to its codes, and costs to read; tables in one run.

    python benchmarks/teacher_store.py               a made-up teacher over Gemma's vocabulary
    python benchmarks/teacher_store.py runs/quickstart   and a run's own, on its data

The made-up one has p ~ rank^-e, e from 0.9 to 1.7, and the ids of the ranks others at every
position: harder to pack than any real one. The divergence is the stored target's from the drawn
one, in nats a token. Reading is decoding alone, and batches through two threads as a run gets them.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from gemma_train.config import RunConfig, read_record
from gemma_train.conversion.load import open_weights
from gemma_train.data.example import Layout, Row
from gemma_train.data.pipeline import batches
from gemma_train.data.teacher_store.codec import Codec, RowTargets, codec
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import UserError
from gemma_train.kernels.vocabulary.candidates import draw_from_logits
from gemma_train.losses.distillation import Distillation, Stored
from gemma_train.mesh import MeshConfig, make_mesh, start_runtime
from gemma_train.samplers import Counts, Gumbel, Multinomial, Priority, Sampler, TopK
from gemma_train.teachers.stored import store_codec
from gemma_train.teachers.writing import plan_store, share_of, write_share

VOCABULARY, LENGTH, CHUNK = 262_144, 256, 16
SAMPLERS = (
    TopK(candidates=256),
    Gumbel(candidates=256),
    Multinomial(candidates=256),
    Counts(candidates=256),
    Priority(candidates=256),
    Priority(candidates=64),
)
HEAD = (
    f"{'sampler':30}{'B/token':>9}{'expected':>9}{'divergence':>12}{'decode/s':>10}{'encode/s':>10}"
)
SECONDS = 2.0


def made_up(sampler: Sampler) -> Row:
    """A row of targets of the made-up teacher."""
    random = np.random.default_rng(0)
    row = Layout(length=LENGTH, candidates=sampler.candidates).padding(1).row(0)
    assert row.candidates is not None and row.probabilities is not None
    row.tokens[:], row.weights[:] = random.integers(0, VOCABULARY, LENGTH), 1
    draw = jax.jit(lambda logits_cv, draws_c: draw_from_logits(logits_cv, draws_c, sampler))
    for first in range(0, LENGTH, CHUNK):
        powers = random.uniform(0.9, 1.7, (CHUNK, 1))
        logits_cv = random.permuted(-powers * np.log(np.arange(1.0, VOCABULARY + 1)), axis=1)
        draws_c = random.integers(0, 2**32, CHUNK, dtype=np.uint32)
        found = draw(jnp.asarray(logits_cv, jnp.float32), jnp.asarray(draws_c))
        part = slice(first, first + CHUNK)
        row.candidates[part], row.probabilities[part] = map(np.asarray, found)
    return row


def divergence(row: Row, kept: RowTargets) -> float:
    """Nats a token of the kept weights from the row's, also where they do not sum to 1."""
    assert row.candidates is not None and row.probabilities is not None
    found = []
    rows = zip(row.candidates, row.probabilities, kept.candidates, kept.probabilities, strict=True)
    for ids, p, kept_ids, q in rows:
        p, q = (np.bincount(i, w, VOCABULARY) for i, w in ((ids, p), (kept_ids, q)))
        p, q = p[q > 0], q[q > 0]
        found.append((q * np.log(q / p) - q + p).sum())
    return float(np.mean(found))


def per_second(work: Callable[[], int]) -> float:
    """Of what `work` returns the number, over some seconds, after once to warm up."""
    work()
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        done += work()
    return done / elapsed


def told(sampler: Sampler, made: Codec, row: Row) -> str:
    """A line of the made-up teacher's table."""
    record = made.encode(row)
    decoded = per_second(lambda: len(made.decode(record).tokens))
    encoded = per_second(lambda: len(made.encode(row)) and LENGTH)
    return (
        f"{sampler!r:30.30}{len(record) / LENGTH:9.0f}{made.estimated_bytes:9}"
        f"{divergence(row, made.decode(record)):12.1e}{decoded:10,.0f}{encoded:10,.0f}"
    )


def of_run(run: RunConfig, sampler: Sampler, folder: str) -> str:
    """A line of a run as the teacher of its own data's first 64 steps."""
    teacher = Stored(folder=folder, weights=run.folder)
    config = replace(run, steps=64, loss=Distillation(teacher=teacher, sampler=sampler))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    weights = open_weights(run.folder)
    plan = plan_store(config, weights, shard_tokens=2**18)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        share = share_of(plan, writer=0, writers=1)
        write_share(config, weights, share, mesh, lambda text: None)
    written = share.rows * run.data.sequence_length / (time.perf_counter() - began)
    there = plan.conclude(plan.finished())
    assert there is not None
    read = per_second(_reader(config, TeacherStore(folder, store_codec(config))))
    return (
        f"{sampler!r:30.30}{there.total('bytes') / there.total('tokens'):9.0f}"
        f"{store_codec(config).estimated_bytes:9}{read:12,.0f}{written:10,.0f}"
    )


def _reader(config: RunConfig, store: TeacherStore) -> Callable[[], int]:
    """Takes a batch of the run's rows again and again."""
    indices = range(config.data.batch_rows)

    def endless() -> Iterator[int]:
        while True:
            data = replace(config.data, prefetch_batches=4)
            with batches(data, start_row=0, batch_indices=indices, teacher=store) as stream:
                for _ in range(config.steps - 4):
                    yield next(stream).tokens_bt.size

    taken = endless()
    return lambda: next(taken)


def main() -> None:
    """The tables."""
    start_runtime(MeshConfig())
    print(f"a made-up teacher, {VOCABULARY:,} ids\n{HEAD}")
    for sampler in SAMPLERS:
        made = codec(sampler, vocabulary=VOCABULARY, length=LENGTH)
        print(told(sampler, made, made_up(sampler)), flush=True)
    for name in sys.argv[1:]:
        run = replace(read_record(name), folder=name)
        print(f"\n{name}, {run.model.vocabulary:,} ids, tokens a second in batches of a run")
        print(f"{'sampler':30}{'B/token':>9}{'expected':>9}{'read/s':>12}{'written/s':>10}")
        for sampler in (*SAMPLERS, TopK(candidates=64)):
            with tempfile.TemporaryDirectory() as folder:
                print(of_run(run, sampler, f"{folder}/store"), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
