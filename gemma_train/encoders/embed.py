"""Images become embeddings, once and ahead of training: `gemma-train embed`.

The encoder is frozen (Gemma 3 report, 2503.19786, 2.1 and 2.4). Every image of a recipe is found
first, so that what is to be done is known; then those that are not in the store are decoded in
threads, encoded in batches and written in whole shards. Images keep the recipe's order, and a shard
begins a batch: a pass that was killed makes the same files as one that was not.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import batched, count, islice
from typing import NamedTuple

import numpy as np

from gemma_train import storage
from gemma_train.data.document import Skipped
from gemma_train.data.image_sources import refuse_image
from gemma_train.data.images.decoding import BadImage, decoded, pixels, resized
from gemma_train.data.images.store import (
    DTYPE,
    SIDECAR,
    EmbeddingStore,
    Head,
    finished_shards,
    write_head,
    write_shard,
)
from gemma_train.data.images.views import View, views
from gemma_train.data.recipe import ImageTextSource, Recipe
from gemma_train.data.sources import documents, read_bytes, source_files
from gemma_train.encoders.encoder import keep_beside
from gemma_train.errors import require
from gemma_train.metrics.byte_progress import Advance, progress
from gemma_train.metrics.wording import byte_count
from gemma_train.model.siglip import Siglip, encode

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How the work is cut up; none of it changes what an image is."""

    threads: int  # that decode
    batch_images: int  # encoded together
    shard_images: int  # written together


def embed(recipe: Recipe, encoder: Siglip, head: Head, pace: Pace, say: Say = print) -> None:
    """Write the embeddings that the recipe's store lacks. The mesh is in force.

    Raises `UserError` for a store of another encoder, in a bucket or written by another process,
    for a disk that has no room, and for an image that is not taken where its source refuses it.
    """
    folder = recipe.image_folder
    require("://" not in folder, f"images.folder {folder!r} must be local: name one, or mount it")
    there = set()
    if (storage.path(folder) / SIDECAR).exists():
        write_head(folder, head)  # another encoder's is refused before anything is read
        storage.remove_abandoned(storage.path(folder))
        there = set(EmbeddingStore(folder))
    found, files, skipped = _survey(recipe)
    missing = found.keys() - there
    _check_disk(folder, len(found), files, len(missing), head, say)
    storage.path(folder).mkdir(parents=True, exist_ok=True)
    with storage.alone(storage.path(folder)):
        write_head(folder, head)
        keep_beside(folder, encoder, head)
        if missing:
            missing -= set(EmbeddingStore(folder))  # that another has written meanwhile
            skipped = _write(recipe, missing, encoder, head, pace)
    for name, one in skipped.items():
        for line in one.told(name, left_out="images not taken"):
            say(line)


def _survey(recipe: Recipe) -> tuple[dict[bytes, None], int, dict[str, Skipped]]:
    """The keys of all views in their order, how many image files there are, and what is none."""
    found: dict[bytes, None] = {}
    files: Counter[str] = Counter()
    skipped: dict[str, Skipped] = {}
    with _reading("looking for images", recipe) as advance:
        for image in _images(recipe, skipped, advance):
            files[image.source.name] += 1
            if image.refused:
                refuse_image(image.source, skipped[image.source.name], image.place, image.refused)
            found.update(dict.fromkeys(view.key for view in image.views))
    for name, one in skipped.items():
        require(
            files[name] > 0 or not one.malformed,
            f"source {name!r} gave no image; first trouble: {one.examples and one.examples[0]}",
        )
    return found, files.total(), skipped


class _Image(NamedTuple):
    """An image of a document: its file's bytes, and what is to be encoded of it."""

    source: ImageTextSource
    place: str
    content: bytes
    views: list[View]
    refused: BadImage | None = None  # why it is not taken, as far as its head tells


def _images(recipe: Recipe, skipped: dict[str, Skipped], advance: Advance) -> Iterator[_Image]:
    """Every image of the recipe's documents."""
    assert recipe.images is not None
    for source in recipe.sources:
        if not isinstance(source, ImageTextSource):
            continue
        mine = skipped[source.name] = Skipped()
        for document in documents(source, source_files(source), mine):
            for content in document.images:
                advance(len(content))
                try:
                    found = views(content, source.limits, recipe.images.pan_and_scan)
                    yield _Image(source, document.place, content, found)
                except BadImage as reason:
                    yield _Image(source, document.place, content, [], reason)


def _reading(title: str, recipe: Recipe):
    """Progress over the bytes of all images."""
    sources = [source for source in recipe.sources if isinstance(source, ImageTextSource)]
    return progress(title, sum(read_bytes(source, source_files(source)) for source in sources))


def _check_disk(folder: str, found: int, files: int, missing: int, head: Head, say: Say) -> None:
    """Say what is to be written. Raises `UserError` where the disk has no room for it."""
    needed, free = missing * head.record_bytes, storage.free_bytes(storage.path(folder))
    said = f"{folder}: {files:,} images found, {found:,} different pictures in them, "
    if not missing:
        return say(said + "all of which are there; to encode them anew, remove the folder first")
    said += f"{found - missing:,} are there; {missing:,} to encode, {byte_count(needed)}"
    say(said if free is None else f"{said}, and {byte_count(free)} are free")
    require(
        free is None or needed < free,
        f"images.folder {folder!r} needs {needed:,} bytes and its disk has {free:,} free: free "
        "some, or name a folder on another disk",
    )


def _write(
    recipe: Recipe, missing: set[bytes], encoder: Siglip, head: Head, pace: Pace
) -> dict[str, Skipped]:
    """Encode the missing views and write them, shard by shard. Returns what was not taken."""
    folder, skipped = recipe.image_folder, {}
    there = set(finished_shards(folder))
    free = (number for number in count() if number not in there)
    total = len(missing) * head.record_bytes
    with progress("embeddings", total) as advance, ThreadPoolExecutor(pace.threads) as threads:
        pictures = _pictures(recipe, missing, skipped, head.side, threads, pace.threads)
        while shard := _shard(islice(pictures, pace.shard_images), encoder, pace, advance):
            keys, embeddings = zip(*shard, strict=True)
            write_shard(folder, next(free), head, keys, np.stack(embeddings))
    return skipped


class _Picture(NamedTuple):
    key: bytes
    bytes_: np.ndarray  # uint8 [side, side, 3]


def _pictures(
    recipe: Recipe,
    missing: set[bytes],
    skipped: dict[str, Skipped],
    side: int,
    threads: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[_Picture]:
    """The missing views in the recipe's order, each once, decoded some ahead of their use."""
    waiting: deque[tuple[_Image, Future[list[_Picture]]]] = deque()
    left = set(missing)

    def first() -> list[_Picture]:
        image, future = waiting.popleft()
        try:
            return future.result()
        except BadImage as reason:
            refuse_image(image.source, skipped[image.source.name], image.place, reason)
            return []

    for image in _images(recipe, skipped, lambda size: None):
        wanted = [view for view in image.views if view.key in left]
        if wanted or image.refused:
            left.difference_update(view.key for view in wanted)
            waiting.append((image, threads.submit(_decoded, image, wanted, side)))
        if len(waiting) > 2 * ahead:
            yield from first()
    while waiting:
        yield from first()


def _decoded(image: _Image, wanted: list[View], side: int) -> list[_Picture]:
    if image.refused:
        raise image.refused
    picture = decoded(image.content, image.source.limits)
    crops = [picture.crop(box) if box else picture for _, box in wanted]
    return [
        _Picture(view.key, resized(crop, side)) for view, crop in zip(wanted, crops, strict=True)
    ]


def _shard(
    pictures: Iterator[_Picture], encoder: Siglip, pace: Pace, advance: Advance
) -> list[tuple[bytes, np.ndarray]]:
    """Keys and embeddings of a shard; a batch is on the devices while the next is decoded."""
    made: list[tuple[bytes, np.ndarray]] = []
    before = None
    for batch in batched(pictures, pace.batch_images):
        side = encoder.config.side
        filled = np.zeros((pace.batch_images, side, side, 3), np.float32)  # one shape: one program
        for place, picture in enumerate(batch):
            filled[place] = pixels(picture.bytes_)
        now = batch, encode(encoder, filled)
        if before is not None:
            made += _fetched(*before, advance)
        before = now
    return made + _fetched(*before, advance) if before is not None else made


def _fetched(batch: tuple[_Picture, ...], answer, advance: Advance) -> list:
    """Of a batch, without what filled it up. Raises `UserError` for numbers that are none."""
    embeddings = np.asarray(answer)[: len(batch)]
    for picture, one in zip(batch, embeddings, strict=True):
        require(
            bool(np.isfinite(one).all()),
            f"the encoder gave numbers that are not finite for image {picture.key.hex()[:16]}...: "
            "its weights are damaged, name another",
        )
    made = [(p.key, one.astype(DTYPE)) for p, one in zip(batch, embeddings, strict=True)]
    advance(sum(one.nbytes for _, one in made))
    return made
