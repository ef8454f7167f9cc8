"""Every reader of files, with a small whole sample of what it reads.

Programs of the user's own (configs, recipes, sweeps) are no samples: they are executed.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.seal import damage
from gemma_train.commands import inspect
from gemma_train.config import EXAMPLE, Online, RunConfig, read_model_record, read_record
from gemma_train.conversion import (
    encoder_folder,
    encoder_record,
    gemma_orbax,
    gguf_file,
    orbax_arrays,
)
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.tensors import Weights
from gemma_train.data.document import Skipped
from gemma_train.data.example import Layout
from gemma_train.data.images import store as image_store
from gemma_train.data.images.decoding import BadImage, ImageLimits, decoded, pixels, resized
from gemma_train.data.images.rows import RowImages
from gemma_train.data.images.views import PanAndScan, views
from gemma_train.data.recipe import ImageTextSource, TextSource
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset, check_vocabulary, verify
from gemma_train.data.sources import documents
from gemma_train.data.teacher_store import shards as teacher_shards
from gemma_train.data.teacher_store.plan import plan_of
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import UserError, require
from gemma_train.losses.distillation import Distillation
from gemma_train.metrics import recorder
from gemma_train.metrics.report import page
from gemma_train.sweeps.results import result
from gemma_train.sweeps.sweep import HELD_OUT_LOSS, Run
from gemma_train.teachers.identity import check_teacher, keep_teacher
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.training.checkpoint import config_changes, read
from gemma_train.training.position import Position, position_after, write_return
from gemma_train.training.versions import changes_since
from tests.data.teacher_store.made import CODEC, LENGTH, ORIGIN, record_of
from tests.fuzz import samples_of_data as data
from tests.fuzz import samples_of_models as models
from tests.fuzz import seals
from tests.fuzz.reader import Reader


def _read_weights(folder: Path) -> None:
    weights = open_weights(str(folder))
    inspect.described(weights)
    for tensor in weights.tensors.values():
        tensor.read()


def _read_checkpoint(folder: Path) -> None:
    """All but its arrays, each of which takes Orbax some 20 ms: `orbax arrays` reads those."""
    inspect.described(open_weights(str(folder)))


def _read_sealed(folder: Path) -> None:
    """What `checkpoint verify` and a resumption look at."""
    checkpoints, heard = CheckpointFolder(str(folder)), []
    for step in checkpoints.steps:
        heard.append(damage(checkpoints.checkpoint(step)))
        heard.append(damage(checkpoints.checkpoint(step), slice(0)))
    newest = checkpoints.newest_whole(heard.append)
    assert not any("\n" in line for line in heard), heard
    require(newest is not None, "no checkpoint")


def _read_arrays(folder: Path) -> None:
    for tensor in orbax_arrays.stored(epath.Path(folder / "arrays")).values():
        tensor.read()


def _resume(folder: Path) -> None:
    """What a run that goes on takes from a checkpoint, onto one device."""
    here = SingleDeviceSharding(jax.devices()[0])
    shapes = {"a": {"w": (4, 3)}, "b": (2, 2), "c": ()}
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=here),
        shapes,
        is_leaf=lambda one: isinstance(one, tuple),
    )
    state, kept = read(epath.Path(folder / "arrays"), like)
    jax.block_until_ready(state)
    changes_since(kept.versions)
    config_changes(kept.config, EXAMPLE)


def _read_encoder(folder: Path) -> None:
    require(encoder_folder.is_folder(epath.Path(folder)), "no encoder")
    for tensor in encoder_folder.read(epath.Path(folder))[1].values():
        tensor.read()


def _read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(str(folder / "tokenizer.model"))
    for text in (*data.TEXTS, "<start_of_turn>"):
        tokenizer.decode(tokenizer.encode(text, bos=True))
    tokenizer.decode(range(tokenizer.vocabulary))
    tokenizer.pieces()


def _read_dataset(folder: Path) -> None:
    dataset = TokenDataset(str(folder))
    check_vocabulary(str(folder), 1_000)
    _read_rows(Rows(dataset, LENGTH))
    dataset.document_starts()
    verify(str(folder))


def _read_dataset_with_images(folder: Path) -> None:
    dataset = TokenDataset(str(folder / "dataset"))
    store = image_store.EmbeddingStore(str(folder / "images"))
    _read_rows(Rows(dataset, LENGTH, RowImages(store=store, per_row=2)))
    verify(str(folder / "dataset"))


def _read_rows(rows: Rows) -> None:
    for number in range(len(rows)):
        rows[number]


def _read_images(folder: Path) -> None:
    store = image_store.EmbeddingStore(str(folder))
    image_store.check_head(str(folder), store.head, data.HEAD)
    for image in (*store, *data.KEYS):
        if image in store:
            store.read(image)
    image_store.verify(str(folder))


def _read_targets(folder: Path) -> None:
    name, dataset = str(folder / "store"), TokenDataset(str(folder / "dataset"))
    rows = Rows(dataset, LENGTH)
    lesson = data.lesson_of(folder, rows=len(rows))
    store = TeacherStore(name, CODEC)
    teacher_shards.check_origin(name, store.description.head.origin, ORIGIN)
    taught = store.rows_of("data/made", lesson.datasets[0].sha256)
    layout = Layout(length=LENGTH, candidates=CODEC.candidates)
    store.missing(taught.dataset, np.arange(len(rows)))
    for number in range(len(rows)):
        row = layout.padding(1).row(0)
        rows.fill(number, row)
        taught.fill(number, row)
    every = np.stack([np.zeros(len(rows), np.int64), np.arange(len(rows))], axis=1)
    plan = plan_of(name, ORIGIN, lesson, every, stream_rows=len(rows))
    for number in range(len(store.description.shards)):
        teacher_shards.read_note(name, number)
    plan.finished()
    teacher_shards.verify(name)


def _decode_targets(folder: Path) -> None:
    """Every checksum is right: what is met is what the codes say."""
    for name, made in data.CODECS.items():
        files = [file for file in sorted((folder / name).glob("*")) if file.is_file()]
        planes = [file.read_bytes() for file in files]
        try:
            made.decode(record_of(planes))
        except ValueError as error:  # the store tells it with the row
            raise UserError(str(error)) from None


def _taught_by(folder: Path) -> tuple[RunConfig, Weights]:
    run = replace(EXAMPLE, folder=str(folder), loss=Distillation(teacher=Online(weights="large")))
    return run, Weights(source=str(folder), format="hf", config=run.model, tensors={})


def _read_result(folder: Path) -> None:
    run = Run(name="one", config=replace(EXAMPLE, folder=str(folder)))
    result(run, "done", HELD_OUT_LOSS)


def _read_report(folder: Path) -> None:
    """Without its curves, each of which takes a tenth of a second."""
    with patch("gemma_train.metrics.report.draw", lambda curve: ""):
        page(epath.Path(folder))


def _read_pictures(folder: Path) -> None:
    limits = ImageLimits()
    for file in sorted(folder.iterdir()):
        content = file.read_bytes() if file.is_file() else b""
        try:
            views(content, limits, PanAndScan(smallest_crop=4))
            pixels(resized(decoded(content, limits), 8))
        except BadImage as error:
            raise UserError(f"image {file.name!r}: {error}") from None


def _reading_of(source: TextSource | ImageTextSource, pattern: str):
    def read(folder: Path) -> None:
        skipped = Skipped()
        files = map(epath.Path, sorted(folder.glob(pattern)))
        for document in documents(source, files, skipped):
            sha256(document.content)
        require(not skipped.malformed + skipped.images, "; ".join(skipped.examples))

    return read


def _texts(format: str, pattern: str):
    source = TextSource(name="made", files=(pattern,), licence="CC0-1.0", format=format)
    return _reading_of(source, pattern)


def _images(format: str, pattern: str):
    source = ImageTextSource(name="made", files=(pattern,), licence="CC0-1.0", format=format)
    return _reading_of(source, pattern)


_BACK = Position(next_row=32, returns=1)
_READERS = (
    Reader(name="run record", make=models.run_record, read=lambda f: read_record(str(f))),
    Reader(
        name="model record",
        make=models.model_record,
        read=lambda f: read_model_record(epath.Path(f / gemma_orbax.RECORD)),
    ),
    Reader(
        name="encoder record",
        make=models.seen_encoder,
        read=lambda f: encoder_record.check(str(f), data.HEAD),
    ),
    Reader(
        name="teacher record",
        make=lambda f: keep_teacher(*_taught_by(f), begun=False),
        read=lambda f: check_teacher(*_taught_by(f)),
    ),
    Reader(name="metrics", make=models.metrics, read=recorder.read),
    Reader(name="sweep's result", make=models.figures, read=_read_result),
    Reader(name="report", make=models.report, read=_read_report),
    Reader(name="drawn report", make=models.report, read=lambda f: page(epath.Path(f)), cost=10),
    Reader(name="tokenizer", make=data.tokenizer, read=_read_tokenizer),
    Reader(name="dataset", make=data.dataset, read=_read_dataset, seal=seals.dataset),
    Reader(
        name="dataset with images",
        make=data.dataset_with_images,
        read=_read_dataset_with_images,
        seal=seals.dataset,
    ),
    Reader(name="teacher store", make=data.teacher_store, read=_read_targets, seal=seals.targets),
    Reader(name="teacher's targets", make=data.targets, read=_decode_targets),
    Reader(name="image store", make=data.image_store, read=_read_images),
    Reader(name="pictures", make=data.pictures, read=_read_pictures),
    Reader(name="texts", make=data.texts, read=_texts("text", "*.txt*")),
    Reader(name="text lines", make=data.json_lines, read=_texts("jsonl", "*.jsonl*")),
    Reader(name="text table", make=data.text_table, read=_texts("parquet", "*.parquet")),
    Reader(name="image files", make=data.image_files, read=_images("files", "*.png")),
    Reader(name="image lines", make=data.image_lines, read=_images("jsonl", "*.jsonl")),
    Reader(name="image table", make=data.image_table, read=_images("parquet", "*.parquet")),
    Reader(name="image archive", make=data.archive, read=_images("webdataset", "*.tar")),
    Reader(name="hugging face", make=models.hugging_face, read=_read_weights),
    Reader(name="hugging face shards", make=models.hugging_face_shards, read=_read_weights),
    Reader(name="encoder", make=models.encoder, read=_read_encoder),
    Reader(
        name="gguf",
        make=models.gguf,
        read=lambda f: gguf_file.described(epath.Path(f / "some.gguf")),
    ),
    Reader(name="orbax arrays", make=models.arrays, read=_read_arrays),
    Reader(name="resumption", make=models.arrays, read=_resume),
    Reader(
        name="note of a return",
        make=lambda f: write_return(epath.Path(f), 3, _BACK),
        read=lambda f: position_after(epath.Path(f), 3, Position()),
    ),
    Reader(name="gemma orbax", make=models.orbax, read=_read_checkpoint),
    Reader(name="run folder", make=models.run, read=_read_checkpoint, seal=seals.checkpoint),
    Reader(name="sealed checkpoints", make=models.sealed, read=_read_sealed, seal=seals.checkpoint),
)
READERS = {reader.name: reader for reader in _READERS}
