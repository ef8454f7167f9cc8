"""From a recipe to its datasets: read, split off held-out documents, tokenise, write.

Of images the embeddings are made before (`gemma-train embed`): here their places are written, and
a document with one that could not be decoded is left out here as it was there.

The documents keep the recipe's order and every one is tokenised by itself, so that the datasets
are the same, byte for byte, for any number of threads and after any interruption. Tokenising runs
in threads, not processes: SentencePiece leaves Python's lock alone (4.8 MB/s on one core, 9.4 on
two).
"""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from etils import epath

from gemma_train import storage
from gemma_train.data.document import Document, Skipped
from gemma_train.data.image_sources import refuse_image
from gemma_train.data.images.decoding import BadImage
from gemma_train.data.images.views import View
from gemma_train.data.recipe import ImageTextSource, Recipe, Source
from gemma_train.data.recipe_images import RecipeImages
from gemma_train.data.shards import (
    SIDECAR,
    Description,
    ImageSpan,
    SourceCounts,
    check_sizes,
    check_tokenizer,
    read_description,
)
from gemma_train.data.sources import documents, estimated_bytes, read_bytes, source_files
from gemma_train.data.token_writer import TokenWriter
from gemma_train.data.training_text import is_held_out
from gemma_train.errors import UserError, require
from gemma_train.metrics.byte_progress import progress
from gemma_train.tokenizer.tokenizer import Tokenizer

TRAIN, HELD_OUT = "train", "held_out"
_CHUNK_BYTES = 1_000_000  # of text a thread, tokenised together
_BYTES_PER_TOKEN = 3  # low for a small vocabulary, so that the estimate of the disk is high


def prepared(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Description]:
    """The finished datasets in the recipe's folder, by part; empty when there are none.

    Raises `UserError` when they were made by another recipe or tokenizer, naming what differs.
    """
    folder = storage.path(recipe.folder)
    if not (folder / TRAIN / SIDECAR).exists():  # it is written last
        return {}
    parts = [part for part in (TRAIN, HELD_OUT) if (folder / part / SIDECAR).exists()]
    found = {part: read_description(str(folder / part)) for part in parts}
    for part, description in found.items():
        different = list(_differences(description.recipe, _plain(recipe)))
        require(
            not different,
            f"folder {recipe.folder!r} was made by another recipe ({'; '.join(different[:3])}): "
            "name another folder, or remove this one first",
        )
        check_tokenizer(str(folder / part), description, tokenizer.name, tokenizer.sha256)
        check_sizes(str(folder / part), description)
    return found


def prepare(
    recipe: Recipe, tokenizer: Tokenizer, *, threads: int, report: Callable[[str], None] = print
) -> dict[str, Description]:
    """Write `<folder>/train` and `<folder>/held_out`, over whatever an interrupted run left there.

    Returns what was written by part; there is no held-out part when no document fell to it. Raises
    `UserError` for a source without documents and for a disk that is or would be full.
    """
    folder = storage.path(recipe.folder)
    images = RecipeImages.of(recipe, tokenizer)
    files = [source_files(source) for source in recipe.sources]
    pairs = [*zip(recipe.sources, files, strict=True)]
    text = sum(estimated_bytes(*pair) for pair in pairs)
    soft = len(images.store) * images.markup.span.length if images else 0
    _check_space(folder, text * 4 // _BYTES_PER_TOKEN + soft * 4, report)
    total = sum(read_bytes(*pair) for pair in pairs)
    with _full_disk_in_one_line(folder), progress("tokenising", total) as advance:
        span = images.markup.span if images else None
        parts = {part: _Part(folder / part, recipe, span) for part in (TRAIN, HELD_OUT)}
        for source, found in pairs:
            skipped = Skipped()
            ready = _ready(documents(source, found, skipped), source, images, skipped, folder)
            for chunk in _chunks(ready, _CHUNK_BYTES * threads):
                _add(chunk, parts, source, tokenizer, images, threads)
                advance(sum(one.read for one in chunk))
            for line in skipped.told(source.name, left_out="documents left out for an image"):
                report(line)
            _check_found(source, parts, skipped)
        require(
            parts[TRAIN].documents > 0,
            f"recipe {recipe.name!r}: every document is held out, lower held_out_fraction",
        )
        for part in (HELD_OUT, TRAIN):
            if parts[part].documents:
                parts[part].finish(tokenizer, recipe)
    return prepared(recipe, tokenizer)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A document whose images are known: what is left to do is to tokenise it."""

    parts: list[str | View]
    part: str  # train or held out
    size: int  # bytes of UTF-8
    characters: int
    read: int  # bytes, with those of images


def _ready(
    found: Iterator[Document],
    source: Source,
    images: RecipeImages | None,
    skipped: Skipped,
    folder: epath.Path,
) -> Iterator[_Ready]:
    """Documents without those that have an image which is not taken."""
    for document in found:
        parts = [*document.parts]
        part = HELD_OUT if is_held_out(document.content, source) else TRAIN
        if images is not None and isinstance(source, ImageTextSource):
            try:
                parts = images.placed(document, source)
                if part == HELD_OUT:
                    images.keep_pictures(document, source, str(folder / HELD_OUT))
            except BadImage as reason:
                refuse_image(source, skipped, document.place, reason)
                continue
        read = document.size + sum(map(len, document.images))
        yield _Ready(parts, part, document.size, len(document.text), read)


def _add(
    chunk: list[_Ready],
    parts: "dict[str, _Part]",
    source: Source,
    tokenizer: Tokenizer,
    images: RecipeImages | None,
    threads: int,
) -> None:
    """Tokenise documents together, and write each to its part."""
    texts = [part for ready in chunk for part in ready.parts if isinstance(part, str)]
    encoded = iter(tokenizer.encode_batch(texts, threads=threads))
    for ready in chunk:
        ids, places = [tokenizer.bos], []
        for part in ready.parts:
            if isinstance(part, str):
                ids += next(encoded)
            else:
                assert images is not None
                places.append((images.markup.put(ids), part.key))
        ids.append(tokenizer.eos)
        parts[ready.part].add(source, ready, ids, places)


@dataclass
class _Counts:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    images: int = 0


class _Part:
    """A dataset under way and its counts by source."""

    def __init__(self, folder: epath.Path, recipe: Recipe, image: ImageSpan | None):
        self._writer = TokenWriter(folder, recipe.shard_tokens, image)
        self.counts = {source.name: _Counts() for source in recipe.sources}

    @property
    def documents(self) -> int:
        return sum(counts.documents for counts in self.counts.values())

    def add(
        self, source: Source, ready: _Ready, ids: list[int], images: list[tuple[int, bytes]]
    ) -> None:
        self._writer.append(ids, images)
        counts = self.counts[source.name]
        counts.documents += 1
        counts.tokens += len(ids)
        counts.bytes += ready.size
        counts.characters += ready.characters
        counts.images += len(images)

    def finish(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        sources = [
            SourceCounts(
                name=source.name, licence=source.licence, **asdict(self.counts[source.name])
            )
            for source in recipe.sources
        ]
        self._writer.finish(tokenizer, _plain(recipe), sources)


def _chunks(found: Iterator[_Ready], chunk_bytes: int) -> Iterator[list[_Ready]]:
    """Documents in lists of about so many bytes of text."""
    chunk, size = [], 0
    for ready in found:
        chunk.append(ready)
        size += ready.size
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _plain(recipe: Recipe) -> dict:
    """The recipe as JSON keeps it, without its folders, which may be moved."""
    plain = json.loads(json.dumps(asdict(recipe)))
    del plain["folder"]
    if plain["images"]:
        del plain["images"]["folder"]
    return plain


def _differences(there: object, here: object, name: str = "") -> Iterator[str]:
    """`field: value there, value here` for every leaf in which two plain values differ."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(there.get(key), here.get(key), inner)
    elif there != here:
        yield f"{name} {there!r} there, {here!r} here"


def _check_space(folder: epath.Path, needed: int, report: Callable[[str], None]) -> None:
    free = storage.free_bytes(folder)
    estimate = f"{folder}: about {needed / 1e6:,.0f} MB of tokens to write"
    if free is None:
        return report(estimate)
    report(f"{estimate}, {free / 1e9:,.1f} GB are free")
    require(
        needed < free,
        f"folder {str(folder)!r} needs about {needed:,} bytes and its disk has {free:,} free: free "
        "some, or name a folder on another disk",
    )


@contextmanager
def _full_disk_in_one_line(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {str(folder)!r} is full: free some space and run again, which starts anew"
        ) from None


def _check_found(source: Source, parts: dict[str, _Part], skipped: Skipped) -> None:
    found = sum(part.counts[source.name].documents for part in parts.values())
    short = f"; {skipped.short:,} are shorter than its minimum_characters" if skipped.short else ""
    first = f"; first trouble: {skipped.examples[0]}" if skipped.examples else ""
    require(found > 0, f"source {source.name!r} gave no document{short}{first}")
