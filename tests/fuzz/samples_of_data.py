"""Small whole samples of what data is read from, each the same whenever it is made."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
from etils import epath
from PIL import Image
from pyarrow import parquet
from sentencepiece import sentencepiece_model_pb2

from gemma_train.data.example import Layout
from gemma_train.data.images.store import Head, image_key, write_head, write_shard
from gemma_train.data.rows import Rows
from gemma_train.data.shards import ImageSpan, SourceCounts, TokenDataset
from gemma_train.data.teacher_store import shards as teacher_shards
from gemma_train.data.teacher_store.codec import codec
from gemma_train.data.token_writer import TokenWriter
from gemma_train.samplers import Counts, Priority, TopK
from gemma_train.tokenizer.tokenizer import Tokenizer
from tests.data.teacher_store.made import (
    CODEC,
    LENGTH,
    ORIGIN,
    VOCABULARY,
    made_targets,
    planes_of,
)

CODECS = {
    type(sampler).__name__.lower(): codec(sampler, vocabulary=VOCABULARY, length=LENGTH)
    for sampler in (TopK(candidates=4), Priority(candidates=4), Counts(candidates=4))
}

PIECES = ("<start_of_turn>", "<end_of_turn>", "\u2581\u2581", "\n\n")
TEXTS = ("a cat sleeps", "two birds,\n\nand a tree", "\u00fcber allem", "x" * 40)
SOFT = 4  # tokens of an image
HEAD = Head(encoder_sha256="ab" * 32, encoder="runs/encoder", side=28, tokens=SOFT, width=6)
KEYS = [image_key(f"image {number}".encode()) for number in range(4)]
FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")


def tokenizer(folder: Path) -> Path:
    """A SentencePiece model with a piece of every kind."""
    proto = sentencepiece_model_pb2.ModelProto()
    kind = proto.SentencePiece.Type
    pieces = [(text, 0.0, kind.CONTROL) for text in ("<pad>", "<eos>", "<bos>")]
    pieces += [("<unk>", 0.0, kind.UNKNOWN)]
    pieces += [(text, 0.0, kind.USER_DEFINED) for text in PIECES]
    pieces += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    pieces += [(text, -float(i), kind.NORMAL) for i, text in enumerate(["ca", "\u2581", *"abcst"])]
    for text, score, number in [*pieces, ("z", -9.5, kind.UNUSED)]:
        proto.pieces.add(piece=text, score=score, type=number)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = trainer.BPE, True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    file = folder / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    return file


def dataset(folder: Path) -> None:
    """Tokens in two shards."""
    documents = [[2, *range(4, 4 + length), 1] for length in (9, 0, 20, 3, 15, 30)]
    _write(folder, documents, image=None)


def dataset_with_images(folder: Path) -> None:
    """Tokens and places of images in two shards, and the store of their embeddings."""
    documents = [[2, 9, 5, *[0] * SOFT, 6, *range(4, 4 + length), 1] for length in (9, 0, 20, 3)]
    _write(folder / "dataset", documents, image=ImageSpan(before=1, tokens=SOFT, after=1))
    image_store(folder / "images")


def _write(folder: Path, documents: list[list[int]], image: ImageSpan | None) -> None:
    folder.mkdir(exist_ok=True)
    writer = TokenWriter(epath.Path(folder), 40, image)
    for document, key in zip(documents, [*KEYS, b"", b""], strict=False):
        writer.append(document, [(3, key)] if image else [])
    tokens = sum(map(len, documents))
    counts = {"documents": len(documents), "tokens": tokens, "bytes": 0, "characters": 0}
    file = tokenizer(folder)
    made = Tokenizer.load(str(file))
    file.unlink()
    writer.finish(made, {"name": "x"}, [SourceCounts(name="made", licence="CC0-1.0", **counts)])


def image_store(folder: Path) -> None:
    """Embeddings in two shards."""
    random = np.random.default_rng(0)
    write_head(str(folder), HEAD)
    for number, keys in enumerate((KEYS[:3], KEYS[3:])):
        x_ipe = random.normal(size=(len(keys), HEAD.tokens, HEAD.width))
        write_shard(str(folder), number, HEAD, keys, x_ipe)


def teacher_store(folder: Path) -> None:
    """A dataset, and a teacher's targets of all of its rows in two shards."""
    dataset(folder / "dataset")
    rows, store = Rows(TokenDataset(str(folder / "dataset")), LENGTH), folder / "store"
    head = teacher_shards.Head(origin=ORIGIN, lesson=lesson_of(folder, rows=len(rows)))
    store.mkdir()
    for number, some in enumerate(np.array_split(np.arange(len(rows)), 2)):
        teacher_shards.write_shard(
            str(store),
            number,
            head,
            rows=np.stack([np.zeros_like(some), some], axis=1),
            records=[CODEC.encode(made_targets(rows[row])) for row in some.tolist()],
            tokens=int(some.size),
        )
    notes = [teacher_shards.read_note(str(store), number) for number in range(2)]
    description = teacher_shards.Description(
        head=head,
        stream_rows=len(rows),
        dataset_rows=(len(rows),),
        shards=tuple(note.shard for note in notes if note),
    )
    teacher_shards.write_description(str(store), description)


def targets(folder: Path) -> None:
    """The byte planes of a row's targets, a folder for each way to code weights."""
    full = Layout(length=LENGTH, candidates=4).padding(1).row(0)
    full.weights[:] = 1
    full = made_targets(full)
    for name, made in CODECS.items():
        if name == "counts":
            full.probabilities[:] = 1 / 4
        (folder / name).mkdir()
        for number, plane in enumerate(planes_of(made.encode(full))):
            (folder / name / f"{number:02d}.bin").write_bytes(plane)


def lesson_of(folder: Path, rows: int) -> teacher_shards.Lesson:
    """What is taught of `teacher_store`; its dataset goes by the same name wherever it lies."""
    digest = teacher_shards.storage.sha256(epath.Path(folder / "dataset/dataset.json"))
    return teacher_shards.Lesson(
        datasets=(teacher_shards.TaughtDataset(path="data/made", sha256=digest),),
        order=teacher_shards.Order(
            shuffle_seed=0, weights=(1.0,), places=(0,), shard_rows=-(-rows // 2)
        ),
    )


def pictures(folder: Path) -> None:
    """A picture in every format, with the things that differ between them."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (7, 9, 3), np.uint8)
    picture = Image.fromarray(levels)
    for suffix in FORMATS:
        picture.save(folder / f"plain.{suffix}")
    picture.convert("RGBA").save(folder / "transparent.png")
    picture.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(levels[..., 0].astype(np.uint16) * 200).save(folder / "wide.png")
    Image.fromarray(levels[..., 0].astype(np.uint16) * 200).save(folder / "wide.tiff")
    picture.save(folder / "packed.tiff", compression="tiff_lzw")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)] * 2)
    picture.save(folder / "progressive.jpg", progressive=True, exif=Image.Exif())


def texts(folder: Path) -> None:
    """Text, one of the files packed."""
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    (folder / "packed.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode(), mtime=0))


def json_lines(folder: Path) -> None:
    """Objects with a text, one of the files packed."""
    lines = "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in TEXTS)
    (folder / "some.jsonl").write_text(lines)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def text_table(folder: Path) -> None:
    """Columns of text, plain and by a dictionary."""
    column = pyarrow.array(TEXTS)
    for name, values in (("plain", column), ("dictionary", column.dictionary_encode())):
        table = pyarrow.table({"text": values, "number": [1, 2, 3, 4]})
        parquet.write_table(table, folder / f"{name}.parquet", compression="gzip")


def image_table(folder: Path) -> None:
    """Columns of images and texts."""
    images = [{"bytes": png(shade), "path": None} for shade in range(2)]
    table = pyarrow.table({"image": images, "text": TEXTS[:2]})
    parquet.write_table(table, folder / "images.parquet", compression="none")


def image_files(folder: Path) -> None:
    """Images, each with its caption beside it."""
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(TEXTS[number])


def image_lines(folder: Path) -> None:
    """Documents of texts and images by name."""
    (folder / "pictures").mkdir()
    (folder / "pictures/0.png").write_bytes(png(0))
    content = [{"text": "A cat:"}, {"image": "pictures/0.png"}, {"text": "It sleeps."}]
    lines = (json.dumps({"content": content}) + "\n") * 2
    (folder / "some.jsonl").write_text(lines)


def archive(folder: Path) -> None:
    """An archive of images and their captions."""
    members = {"0.png": png(0), "0.txt": b"a cat", "1.png": png(1), "1.json": b'{"text": "b"}'}
    with tarfile.open(folder / "some.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size, header.pax_headers = len(content), {"comment": "x"}
            archive.addfile(header, io.BytesIO(content))


def png(shade: int) -> bytes:
    """A small picture."""
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (40 * shade, 3, 200)).save(content, "png")
    return content.getvalue()
