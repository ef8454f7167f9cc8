"""`gemma-train teacher CONFIG`: a run's teacher, before it: what it says of the run's own rows."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from gemma_train import storage
from gemma_train.config import RunConfig
from gemma_train.data.pipeline import check
from gemma_train.data.teacher_store.plan import Plan
from gemma_train.data.teacher_store.reading import check_folder
from gemma_train.data.teacher_store.shards import Description, verify
from gemma_train.errors import UserError, require
from gemma_train.mesh import is_leader, make_mesh, start_runtime
from gemma_train.metrics.wording import byte_count, count
from gemma_train.teachers.online import open_teacher
from gemma_train.teachers.stored import store_codec, stored, with_teacher_online
from gemma_train.teachers.writing import check_disk, plan_store, share_of, write_share


@dataclass(frozen=True, kw_only=True)
class TeacherArguments:
    """Store what the teacher of a config says of the run's rows; every field is a flag too.

    Killed, it goes on where it was. Several writers share one folder, each with its --writer.
    """

    writer: int = 0  # which of the writers this is, from 0
    writers: int = 1  # how many there are, on one machine or on many; each writes its own shards
    shard_tokens: int = 262_144  # tokens in a shard: what a kill costs at most
    dry_run: bool = False  # say what would be written, and end
    verify: bool = False  # read everything back at the end and compare checksums

    def __post_init__(self) -> None:
        for name in ("writers", "shard_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}: must be at least 1")
        require(
            0 <= self.writer < self.writers,
            f"writer is {self.writer}: must be 0 to {self.writers - 1}, for writers is "
            f"{self.writers}",
        )


def run(config: RunConfig, arguments: TeacherArguments) -> None:
    """Write the share of this writer, and the sidecar if it is the last. Raises `UserError`."""
    teacher = stored(config)
    if teacher is None:
        raise UserError(
            f"loss is {type(config.loss).__name__} without a store: set "
            "loss=Distillation(teacher=Stored(folder=..., weights=...))"
        )
    check_folder(teacher.folder)
    start_runtime(config.mesh)
    say = print if is_leader() else lambda text: None
    if config.mesh.runtime == "many_processes":
        say(
            "one host encodes for all of a mesh: several writers, each on its hosts, share the work"
        )
    codec = store_codec(config)
    check(config.data, config.model.vocabulary)
    weights = open_teacher(with_teacher_online(config))
    assert weights is not None
    plan = plan_store(
        config,
        weights,
        shard_tokens=arguments.shard_tokens,
        writes=not arguments.dry_run,
        say=say,
    )
    if is_leader() and not arguments.dry_run:
        storage.remove_abandoned(storage.path(teacher.folder))
    share = share_of(plan, writer=arguments.writer, writers=arguments.writers)
    if share.left:
        check_disk(share, codec, say)
    if plan.shards and arguments.dry_run:
        return
    if share.shards:
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            write_share(config, weights, share, mesh, say)
    _conclude(plan, arguments, say)


def _conclude(plan: Plan, arguments: TeacherArguments, say: Callable[[str], None]) -> None:
    """Say what is there; whoever finds all shards there makes them a store."""
    finished = plan.finished()
    there = plan.conclude(finished) if is_leader() else None
    if there is None:
        say(
            f"{plan.folder}: {len(finished)} of {len(plan.shards)} shards are there; the writer "
            "that finishes last completes it"
        )
        return
    again = "" if plan.shards else "is complete; to write it anew, remove the folder. It holds "
    say(f"{plan.folder}: {again}{_told(there)}")
    if arguments.verify:
        verify(plan.folder)
        say("checksums: all equal")


def _told(there: Description) -> str:
    tokens, size = there.total("tokens"), there.total("bytes")
    return (
        f"{there.total('rows'):,} rows, {count(tokens)} tokens, {byte_count(size)}, "
        f"{size / max(tokens, 1):.0f} B a token"
    )
