"""The store that a run learns from: opened, and held to the run's config, before anything else."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256

from gemma_train import storage
from gemma_train.agreement import of_leader
from gemma_train.config import RunConfig
from gemma_train.conversion.fingerprint import parameters_sha256
from gemma_train.conversion.tensors import Weights
from gemma_train.data.example import Layout
from gemma_train.data.images.store import read_head
from gemma_train.data.lesson import missing_rows
from gemma_train.data.teacher_store.codec import Codec, codec
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import Origin, check_origin
from gemma_train.errors import require
from gemma_train.losses.distillation import Distillation, Online, Stored
from gemma_train.metrics.byte_progress import progress
from gemma_train.metrics.wording import byte_count, count
from gemma_train.teachers.identity import model_files
from gemma_train.teachers.online import open_teacher

SUM = ".teacher_sum"  # in a store: of the teacher's files' names, sizes and times, and parameters
SILENT_BYTES = 1_000_000_000  # of parameters that are read without a word


def stored(config: RunConfig) -> Stored | None:
    """The config of the store that a run learns from, if it does."""
    if isinstance(config.loss, Distillation) and isinstance(config.loss.teacher, Stored):
        return config.loss.teacher
    return None


def batch_layout(config: RunConfig) -> Layout:
    """The sizes of the batches that a run reads: with a stored teacher's candidates, and images."""
    return Layout(
        length=config.data.sequence_length,
        candidates=store_codec(config).candidates if stored(config) else 0,
        images=config.row_images,
    )


def with_teacher_online(config: RunConfig) -> RunConfig:
    """The run whose step would compute what the store of this one holds."""
    teacher = stored(config)
    assert teacher is not None and isinstance(config.loss, Distillation)
    online = Online(weights=teacher.weights, dtype=teacher.dtype)
    return replace(config, loss=replace(config.loss, teacher=online))


def store_codec(config: RunConfig) -> Codec:
    """How the targets of a run are stored. Raises `UserError` for a sampler that is not for it."""
    assert isinstance(config.loss, Distillation)
    return codec(
        config.loss.sampler,
        vocabulary=config.model.vocabulary,
        length=config.data.sequence_length,
    )


def origin(config: RunConfig, weights: Weights | None, parameters_sha256: str | None) -> Origin:
    """What a run's targets are made with, as far as it is known of the teacher's `weights`."""
    teacher, loss, images = stored(config), config.loss, config.data.images
    assert teacher is not None and isinstance(loss, Distillation)
    return Origin(
        tokenizer_sha256=storage.sha256(storage.existing(config.data.tokenizer, "tokenizer")),
        vocabulary=config.model.vocabulary,
        sequence_length=config.data.sequence_length,
        sampler=repr(loss.sampler),
        temperature=loss.temperature,
        seed=loss.seed,
        teacher=teacher.weights,
        parameters_sha256=parameters_sha256,
        parameters=sum(t.size for t in weights.parameters.values()) if weights else None,
        dtype=teacher.dtype,
        encoder_sha256=read_head(images.store).encoder_sha256 if images else None,
        images_per_row=images.per_row if images else None,
    )


def open_store(config: RunConfig, say: Callable[[str], None]) -> TeacherStore | None:
    """The store of a run that learns from one, with all that the run needs in it.

    Where the teacher's own folder is here too, its parameters are read and compared; else the store
    is believed. Raises `UserError` for whatever is missing or differs.
    """
    if (teacher := stored(config)) is None:
        return None
    store = TeacherStore(teacher.folder, store_codec(config))
    there, known = store.description.head.origin, teachers_sha256(config, say)
    check_origin(teacher.folder, there, origin(config, None, known))
    if not known and there.teacher != teacher.weights:
        say(
            f"teacher store {teacher.folder} was made with {there.teacher!r}; loss.teacher.weights "
            f"is {teacher.weights!r}, which is not here to compare: the store is believed"
        )
    needed = config.steps * config.data.batch_rows
    missing = missing_rows(config.data, store, needed)
    require(
        not missing,
        f"teacher store {teacher.folder!r} lacks {missing:,} of the rows that {config.steps:,} "
        "steps need: gemma-train teacher with this config adds them",
    )
    say(_told(store))
    return store


def teachers_sha256(
    config: RunConfig, say: Callable[[str], None], *, compares: bool = False
) -> str | None:
    """The SHA-256 of the parameters of a store's teacher; None where its folder is not here.

    The leader finds it for all processes. It is kept in the store for as long as the teacher's
    files have the same names, sizes and times. Who `compares` alone needs none without a store.
    """
    return of_leader(partial(_sum, config, say, compares)) or None


def _sum(config: RunConfig, say: Callable[[str], None], compares: bool) -> str:
    teacher = stored(config)
    assert teacher is not None
    folder = storage.path(teacher.folder)
    if not storage.path(teacher.weights).exists() or (compares and not folder.exists()):
        return ""
    weights = open_teacher(with_teacher_online(config))
    assert weights is not None
    kept, files = folder / SUM, _stamp(weights)
    line = kept.read_bytes().decode(errors="replace").split() if kept.is_file() else []
    if line[:1] == [files] and len(line) == 2:
        return line[1]
    size = sum(tensor.bytes for tensor in weights.parameters.values())
    if size > SILENT_BYTES:
        say(f"reading {byte_count(size)} of {teacher.weights}, to tell it from other teachers")
    with progress(f"reading {teacher.weights}", size) as advance:
        found = parameters_sha256(weights, advance)
    with suppress(OSError):  # a store may be there to be read only
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_whole(kept, f"{files} {found}\n")
    return found


def _stamp(weights: Weights) -> str:
    """What changes when a model's files do, without their content."""
    stats = {name: file.stat() for name, file in model_files(weights).items()}
    lines = [f"{name} {stat.length} {stat.mtime}\n" for name, stat in stats.items()]
    return sha256("".join([f"{weights.source} {weights.step}\n", *lines]).encode()).hexdigest()


def _told(store: TeacherStore) -> str:
    there = store.description
    tokens, origin = there.total("tokens"), there.head.origin
    assert origin.parameters is not None
    return (
        f"teacher: {count(origin.parameters)} parameters of {origin.teacher}, stored in "
        f"{store.folder}: {tokens:,} tokens, {origin.sampler}, {byte_count(there.total('bytes'))} "
        f"({there.total('bytes') / max(tokens, 1):.0f} B a token)"
    )
