"""Documents out of files: plain text, JSONL and Parquet, local or gs://; gzip if the name says so.

A record that cannot be read is skipped, counted and reported by file and record number: a corpus
of a billion pages always has some. A source that gives no document is the user's mistake. Sources
of images are read in `image_sources`.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator

from etils import epath

from gemma_train import storage
from gemma_train.contents import NO_JSON
from gemma_train.data import parquet
from gemma_train.data.document import Document, Skipped, as_text, check_field
from gemma_train.data.image_sources import image_documents
from gemma_train.data.recipe import Source, TextSource
from gemma_train.data.records import lines, read_at_most
from gemma_train.errors import require

_UNREADABLE = (*NO_JSON, OSError, EOFError, zlib.error)  # also UTF-8 and gzip errors
_COMPRESSION = 4  # gzip and Parquet, roughly
_CAPTION_BYTES = 100  # of text with an image, roughly
_IMAGE_BYTES = 50_000  # of an image in an archive, roughly
_ROWS = 1_000  # of a Parquet file in memory at a time


def source_files(source: Source) -> list[epath.Path]:
    """The files of a source, pattern by pattern, none twice. Raises `UserError` when none match."""
    files = []
    for pattern in source.files:
        found = storage.matching(pattern)
        require(bool(found), f"source {source.name!r}: no file matches {pattern!r}")
        files += found
    return list(dict.fromkeys(files))


def estimated_bytes(source: Source, files: list[epath.Path]) -> int:
    """About how many bytes of text the files hold, from their sizes alone."""
    if isinstance(source, TextSource):
        size = sum(
            file.stat().length * (_COMPRESSION if file.suffix in (".gz", ".parquet") else 1)
            for file in files
        )
        return min(size, source.maximum_bytes or size)
    match source.format:
        case "files":
            return len(files) * _CAPTION_BYTES
        case "jsonl":
            return read_bytes(source, files)
        case "webdataset" | "parquet":
            return read_bytes(source, files) // _IMAGE_BYTES * _CAPTION_BYTES


def read_bytes(source: Source, files: list[epath.Path]) -> int:
    """About how many bytes of texts and images will be read, from the sizes of the files alone."""
    if isinstance(source, TextSource):
        return estimated_bytes(source, files)
    return sum(file.stat().length for file in files)


def documents(source: Source, files: Iterable[epath.Path], skipped: Skipped) -> Iterator[Document]:
    """The documents of these files in order."""
    if isinstance(source, TextSource):
        return _text_documents(source, files, skipped)
    return image_documents(source, files, skipped)


def _text_documents(
    source: TextSource, files: Iterable[epath.Path], skipped: Skipped
) -> Iterator[Document]:
    left = source.maximum_bytes
    for file in files:
        for record, raw in _records(file, source, skipped):
            try:
                text = _text(raw, source)
                size = len(text.encode())
            except NO_JSON as reason:
                skipped.add(file, record, reason)
                continue
            if len(text) < source.minimum_characters:
                skipped.short += 1
                continue
            if left is not None and (left := left - size) < 0:
                return
            yield Document((text,), size, file, record)


def _records(
    file: epath.Path, source: TextSource, skipped: Skipped
) -> Iterator[tuple[int, object]]:
    """Raw records with their numbers from 1; a file that breaks off is reported as one."""
    record = 0
    try:
        with file.open("rb") as stream:
            content = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
            match source.format:
                case "text":
                    yield 1, content.read() if content is stream else read_at_most(content)
                case "jsonl":
                    for record, line in enumerate(lines(content), 1):
                        if line.strip():
                            yield record, line
                case "parquet":
                    columns = parquet.rows(content, (source.text_field,), together=_ROWS)
                    yield from enumerate((text for (text,) in columns), 1)
    except _UNREADABLE as reason:
        skipped.add(file, record and record + 1, reason)


def _text(raw: object, source: TextSource) -> str:
    """The text of a raw record. Raises `ValueError` with the reason when there is none."""
    if source.format == "jsonl":
        record = json.loads(raw)
        if not isinstance(record, dict):
            raise ValueError(f"is a {type(record).__name__}, not an object")
        check_field(source.text_field, record)
        raw = record[source.text_field]
    return as_text(raw, source.text_field)
