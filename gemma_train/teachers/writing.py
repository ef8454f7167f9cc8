"""A teacher runs ahead of its student and stores what it would say: `gemma-train teacher`.

The rows are those that the student will see, in its own packing, each once. Which of them stand in
which shard, and which are computed together, follows from the config alone, so that a pass that was
killed, or shared among writers, makes the same files as one that was not.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec, reshard

from gemma_train import storage
from gemma_train.agreement import of_leader
from gemma_train.config import RunConfig
from gemma_train.conversion.tensors import Weights
from gemma_train.data.example import Batch
from gemma_train.data.lesson import lesson, taught_rows
from gemma_train.data.pipeline import listed_batches
from gemma_train.data.shards import sidecar_sha256
from gemma_train.data.teacher_store.codec import Codec
from gemma_train.data.teacher_store.plan import Plan, plan_of
from gemma_train.data.teacher_store.shards import write_shard
from gemma_train.errors import UserError, require
from gemma_train.losses.distillation import Distillation, taught
from gemma_train.mesh import is_leader
from gemma_train.metrics.byte_progress import Advance, progress
from gemma_train.metrics.wording import byte_count, count, duration
from gemma_train.model import Gemma
from gemma_train.placement import needed_rows, place
from gemma_train.teachers.online import load_teacher
from gemma_train.teachers.stored import (
    origin,
    store_codec,
    stored,
    teachers_sha256,
    with_teacher_online,
)

_ENCODERS = 2  # threads; NumPy and zstandard let go of the interpreter lock
_PACE_SECONDS = 5.0  # after which the time that is left is told


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of a plan one writer has to do."""

    plan: Plan
    shards: tuple[int, ...]  # that are this writer's and not there yet
    rows: int  # of `shards`
    left: int  # rows that are not there, whoever is to write them


def plan_store(
    config: RunConfig,
    weights: Weights,
    *,
    shard_tokens: int,
    writes: bool = True,
    say: Callable[[str], None] = print,
) -> Plan:
    """What the store of a run's config lacks. Raises `UserError` where it is another's.

    A plan that nobody `writes` may do without the sum over the teacher's parameters.
    """
    teacher = stored(config)
    assert teacher is not None
    known = teachers_sha256(config, say, compares=not writes)
    stream_rows = config.steps * config.data.batch_rows
    found = lesson(config.data, shard_rows=-(-shard_tokens // config.data.sequence_length))
    rows = taught_rows(config.data, found, stream_rows)
    due = origin(config, weights, known)
    return plan_of(teacher.folder, due, found, rows, stream_rows=stream_rows)


def share_of(plan: Plan, *, writer: int, writers: int) -> Share:
    """What is left for a writer, whose shards are number `writer` and every `writers`th after.

    All of its processes come.
    """
    finished = {*map(int, of_leader(lambda: " ".join(map(str, plan.finished()))).split())}
    left = [number for number in plan.shards if number not in finished]
    own = tuple(number for number in left if number % writers == writer)
    return Share(
        plan=plan,
        shards=own,
        rows=sum(len(plan.shards[number]) for number in own),
        left=sum(len(plan.shards[number]) for number in left),
    )


def check_disk(share: Share, codec: Codec, say: Callable[[str], None]) -> None:
    """Say what is to be written. Raises `UserError` where the disk has no room for it."""
    plan, folder = share.plan, storage.path(share.plan.folder)
    tokens = share.left * codec.length
    needed, free = tokens * codec.estimated_bytes, storage.free_bytes(folder)
    told = (
        f"{plan.folder}: {share.left:,} rows to write, {count(tokens)} tokens, "
        f"about {codec.estimated_bytes} B each, {byte_count(needed)}"
    )
    say(told if free is None else f"{told}; {byte_count(free)} are free")
    require(
        free is None or needed < free,
        f"loss.teacher.folder {plan.folder!r} needs about {needed:,} bytes and its disk has "
        f"{free:,} free: free some, take fewer candidates, or name a folder on another disk",
    )


def write_share(
    config: RunConfig, weights: Weights, share: Share, mesh: Mesh, say: Callable[[str], None]
) -> None:
    """Run the teacher over a share's rows and write its shards, one after another.

    The mesh is in force; all of its processes compute, and the leader writes.
    """
    codec, plan = store_codec(config), share.plan
    teacher = load_teacher(with_teacher_online(config), weights)
    assert teacher is not None and isinstance(config.loss, Distillation)
    answers = make_answers(config.loss, teacher)
    if is_leader():
        storage.path(plan.folder).mkdir(parents=True, exist_ok=True)
    pace = Pace(share.rows * codec.length, say)
    total = share.rows * codec.length * codec.estimated_bytes
    with progress("targets", total) as advance, ThreadPoolExecutor(_ENCODERS) as threads:
        encode = partial(_encoded, codec, plan, threads, advance)
        for number in share.shards:
            rows = plan.shards[number]
            records, tokens, first = [], 0, 0
            for batch in _answered(config, plan, rows, mesh, answers):
                names = rows[first:][: len(batch.tokens_bt)]
                if is_leader():
                    records += encode(names, batch)
                first += len(names)
                tokens += int((batch.weights_bt > 0).sum())
                pace.add(len(names) * codec.length)
            if is_leader():
                write_shard(
                    plan.folder, number, plan.head, rows=rows, records=records, tokens=tokens
                )


def make_answers(loss: Distillation, teacher: Gemma) -> Callable[[Batch], tuple]:
    """The compiled function from a batch to (candidates, probabilities), whole on every device."""

    @jax.jit
    def answers(teacher: Gemma, batch: Batch) -> tuple[jax.Array, jax.Array]:
        found = taught(teacher, batch, loss)
        whole = PartitionSpec(None, None, None)
        return reshard(found.candidates_btq, whole), reshard(found.probabilities_btq, whole)

    return lambda batch: answers(teacher, batch)


def _answered(
    config: RunConfig, plan: Plan, rows: np.ndarray, mesh: Mesh, answers: Callable[[Batch], tuple]
) -> Iterator[Batch]:
    """Batches of these rows with their targets, each while the devices are at the next.

    The targets are the leader's alone, who encodes them. Raises `UserError` where a dataset is not
    the plan's.
    """
    batch_rows = config.data.batch_rows // config.accumulation
    mine = needed_rows(mesh, batch_rows)
    paths, listed = _listed(plan, rows)
    stream = listed_batches(
        config.data, paths, listed, batch_rows=batch_rows, batch_indices=range(batch_rows)
    )
    before = None
    with stream:
        for batch in stream:
            part = jax.tree.map(lambda x: x[mine], batch)
            now = batch, answers(place(part, mesh, batch_rows))
            if before is not None:
                yield _with_targets(*before)
            before = now
    if before is not None:
        yield _with_targets(*before)


def _listed(plan: Plan, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(paths, rows by place in them) of the datasets that these rows are of: no other is opened."""
    used, places = np.unique(rows[:, 0], return_inverse=True)
    datasets = [plan.head.lesson.datasets[place] for place in used]
    for dataset in datasets:
        found = sidecar_sha256(dataset.path)
        require(
            found == dataset.sha256,
            f"dataset {dataset.path!r} is not the one of teacher store {plan.folder!r} (SHA-256 of "
            f"its dataset.json {found[:12]}..., due is {dataset.sha256[:12]}...): put back the "
            "one that it was, or name another loss.teacher.folder",
        )
    return [dataset.path for dataset in datasets], np.stack([places, rows[:, 1]], axis=1)


def _with_targets(batch: Batch, answer: tuple) -> Batch:
    """The batch with its targets on the leader; the others wait, so as not to run ahead of it."""
    if not is_leader():
        jax.block_until_ready(answer)
        return batch
    candidates_btq, probabilities_btq = (np.asarray(array) for array in answer)
    return replace(batch, candidates_btq=candidates_btq, probabilities_btq=probabilities_btq)


def _encoded(
    codec: Codec,
    plan: Plan,
    threads: ThreadPoolExecutor,
    advance: Advance,
    names: np.ndarray,
    batch: Batch,
) -> list[bytes]:
    """The records of a batch's first rows, whose (dataset, row) are `names`."""

    def encode(index: int) -> bytes:
        try:
            record = codec.encode(batch.row(index))
        except ValueError as error:
            dataset, number = names[index].tolist()
            raise UserError(
                f"loss.teacher.weights {plan.head.origin.teacher!r} gave no target for row "
                f"{number:,} of dataset {plan.head.lesson.datasets[dataset].path!r}: {error}"
            ) from None
        advance(len(record))
        return record

    return list(threads.map(encode, range(len(names))))


class Pace:
    """Tells once, some seconds after the first tokens, how long all of them will take."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say = total, say
        self._done, self._began = 0, 0.0

    def add(self, tokens: int) -> None:
        """So many more are done; what compiles before the first does not count."""
        now = time.monotonic()
        if not self._began:
            self._began, self._total = now, self._total - tokens
            return
        self._done += tokens
        seconds = now - self._began
        if self._total and seconds >= _PACE_SECONDS:
            left = (self._total - self._done) * seconds / self._done
            self._say(
                f"{count(self._done / seconds)} tokens a second: about {duration(left)} to go"
            )
            self._total = 0
