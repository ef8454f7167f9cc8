"""Documents of images and texts out of files: pairs, WebDataset archives, Parquet, JSONL.

Whatever a record says, it reads nothing but what lies in its own file or below that file's folder.
A record that cannot be read is counted and named, as in `sources`; so is one whose image is not
taken, unless the source refuses it.
"""

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from gemma_train.contents import NO_JSON
from gemma_train.data import parquet
from gemma_train.data.document import (
    Document,
    Skipped,
    as_text,
    check_field,
    mixed_document,
    place,
)
from gemma_train.data.images import archives
from gemma_train.data.images.decoding import BadImage, check_size
from gemma_train.data.recipe import ImageTextSource
from gemma_train.data.records import lines
from gemma_train.errors import require

_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
_LARGEST_TEXT = 10_000_000  # bytes of a caption
_ROWS = 16  # of a Parquet file in memory at a time
_UNREADABLE = (*NO_JSON, OSError, EOFError, zlib.error, lzma.LZMAError, *archives.UNREADABLE)

Parts = list[str | bytes]
Records = Iterator[tuple[int | str, Callable[[], Parts]]]  # of each its place, and what reads it


def image_documents(
    source: ImageTextSource, files: Iterable[epath.Path], skipped: Skipped
) -> Iterator[Document]:
    """The documents of these files in order, the bytes of their images undecoded.

    Raises `UserError` for an image beyond the limits, where the source refuses such.
    """
    left = source.maximum_documents
    for file in files:
        for document in _documents(source, file, skipped):
            yield document
            if left is not None and (left := left - 1) == 0:
                return


def refuse_image(source: ImageTextSource, skipped: Skipped, where: str, reason: BadImage) -> None:
    """Count a document whose image is not taken. Raises `UserError` where the source refuses it."""
    require(
        source.damaged == "count",
        f"source {source.name!r}: {where}: {reason}: mend or remove it, or set damaged='count' to "
        "leave such documents out",
    )
    skipped.add_image(where, reason)


def _documents(source: ImageTextSource, file: epath.Path, skipped: Skipped) -> Iterator[Document]:
    number = 0
    try:
        for record, read in _records(source, file):
            number += 1
            try:
                document = mixed_document(read(), file, record)
            except BadImage as reason:
                refuse_image(source, skipped, place(file, record), reason)
            except _UNREADABLE as reason:
                skipped.add(file, record, reason)
            else:
                yield document
    except _UNREADABLE as reason:
        skipped.add(file, number and number + 1, reason)


def _records(source: ImageTextSource, file: epath.Path) -> Records:
    """What a file holds, record by record, each to be read before the next."""
    if source.format == "files":
        if not file.name.endswith(source.caption_suffix):  # a pattern may match captions too
            yield 0, lambda: [_image(file, source), _caption(file, source)]
        return
    with file.open("rb") as stream:
        match source.format:
            case "webdataset":
                for name, members in archives.samples(stream, lambda s: _largest(s, source)):
                    yield name, lambda members=members: _pair(members, source)
            case "parquet":
                columns = source.image_field, source.text_field
                for number, row in enumerate(parquet.rows(stream, columns, together=_ROWS), 1):
                    yield number, lambda row=row: _row(row, source)
            case "jsonl":
                content = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
                for number, line in enumerate(lines(content), 1):
                    if line.strip():
                        yield number, lambda line=line: _content(line, file.parent, source)


def _image(file: epath.Path, source: ImageTextSource) -> bytes:
    check_size(file.stat().length, source.limits)
    return file.read_bytes()


def _caption(file: epath.Path, source: ImageTextSource) -> str:
    caption = file.with_suffix(source.caption_suffix)
    if not caption.exists():
        raise ValueError(f"has no caption {caption.name!r} beside it")
    if (size := caption.stat().length) > _LARGEST_TEXT:
        raise ValueError(f"its caption has {size:,} bytes, at most {_LARGEST_TEXT:,} are taken")
    return as_text(caption.read_bytes(), caption.name)


def _largest(suffix: str, source: ImageTextSource) -> int | None:
    """How many bytes of a member of this suffix are read; None of those that are not looked at."""
    match suffix.rpartition(".")[2]:
        case "txt" | "json":
            return _LARGEST_TEXT
        case last:
            return source.limits.largest_bytes if last in _SUFFIXES else None


def _pair(members: dict[str, archives.Content], source: ImageTextSource) -> Parts:
    """An image and its caption, out of the members of an archive that belong together."""
    images = [suffix for suffix in members if suffix.rpartition(".")[2] in _SUFFIXES]
    if len(images) != 1:
        raise ValueError(f"has {len(images)} images among its members, not 1")
    if not {"txt", "json"} & {*members}:
        raise ValueError("has no caption: neither a member .txt nor .json")
    kind = "txt" if "txt" in members else "json"
    image, caption = archives.taken(members[images[0]]), archives.taken(members[kind])
    if kind == "json":
        return [
            image,
            as_text(_object(caption, source.text_field)[source.text_field], source.text_field),
        ]
    return [image, as_text(caption, kind)]


def _row(row: tuple[Any, ...], source: ImageTextSource) -> Parts:
    """An image and its caption, out of two columns."""
    image, text = row
    if isinstance(image, dict):  # as Hugging Face's datasets write them: {bytes, path}
        image = image.get("bytes")
    if not isinstance(image, bytes):
        found = type(image).__name__
        raise ValueError(f"field {source.image_field!r} is {found}, not the bytes of an image")
    check_size(len(image), source.limits)
    return [image, as_text(text, source.text_field)]


def _content(line: bytes, folder: epath.Path, source: ImageTextSource) -> Parts:
    """Texts and images in the order in which a line of JSON names them."""
    content = _object(line, "content")["content"]
    if not isinstance(content, list):
        raise ValueError(f"field 'content' is {type(content).__name__}, not a list")
    parts: Parts = []
    for number, part in enumerate(content):
        match part:
            case {"text": str(text)} if len(part) == 1:
                parts.append(text)
            case {"image": str(name)} if len(part) == 1:
                parts.append(_image(_below(folder, name), source))
            case _:
                raise ValueError(
                    f"content[{number}] is neither {{'text': ...}} nor {{'image': ...}}, each with "
                    "a string"
                )
    return parts


def _object(content: bytes, name: str) -> dict:
    """A JSON object that has this field."""
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError(f"is a {type(record).__name__}, not an object")
    check_field(name, record)
    return record


def _below(folder: epath.Path, name: str) -> epath.Path:
    """A file below a folder, by its name from there on. Raises `ValueError` for any other."""
    path, local = PurePosixPath(name), "://" not in str(folder)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or "://" in name
    file = folder / name
    if local and not outside:  # a link may lead out as well
        real = os.path.realpath(folder), os.path.realpath(file)
        outside = os.path.commonpath(real) != real[0]
    if outside:
        raise ValueError(f"image {name!r} is not below {folder}: name a file there, without '..'")
    if not (os.path.isfile(file) if local else file.exists()):  # a pipe would be waited for
        raise ValueError(f"image {name!r} is not there")
    return file
