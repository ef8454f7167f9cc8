"""Rows with images: none is cut, none is lost, and no soft token is learned."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from etils import epath

from gemma_train.data.config import DataConfig, ImageRows, TokenSource
from gemma_train.data.example import Layout
from gemma_train.data.images.rows import RowImages, row_starts
from gemma_train.data.images.store import DTYPE, EmbeddingStore, Head, write_head, write_shard
from gemma_train.data.pipeline import batches, held_out_batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import ImageSpan, SourceCounts, TokenDataset
from gemma_train.data.token_writer import TokenWriter
from gemma_train.errors import UserError

SPAN = ImageSpan(before=2, tokens=4, after=1)
HEAD = Head(encoder_sha256="ab" * 32, encoder="an encoder", side=8, tokens=4, width=6)
LENGTH = 24


def key(number: int) -> bytes:
    return sha256(b"image %d" % number).digest()


def embedding(number: int) -> np.ndarray:
    """Of image `number`, unlike any other's."""
    random = np.random.default_rng(number)
    return random.normal(size=(HEAD.tokens, HEAD.width)).astype(DTYPE)


def documents(seed: int, count: int = 40) -> list[tuple[list[int], list[tuple[int, bytes]]]]:
    """(ids, images) of documents of none to five images between up to 40 words."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        ids, images = [2], []
        for _ in range(random.integers(6) * random.integers(2)):
            ids += random.integers(5, 600, random.integers(40)).tolist()
            images.append((len(ids) + SPAN.before, key(int(random.integers(30)))))
            ids += [3, 4, *[0] * SPAN.tokens, 4]
        found.append(([*ids, *random.integers(5, 600, random.integers(9)).tolist(), 1], images))
    return found


@pytest.fixture
def folder(tmp_path, tokenizer):
    """Writes documents as a dataset, and returns its folder."""

    def write(name: str, made: list, span: ImageSpan = SPAN) -> str:
        writer = TokenWriter(epath.Path(tmp_path / name), 150, span)
        for document in made:
            writer.append(*document)
        counts = SourceCounts(
            name="made", licence="CC0-1.0", documents=len(made), tokens=0, bytes=0, characters=0
        )
        writer.finish(tokenizer, {}, [counts])
        return str(tmp_path / name)

    return write


@pytest.fixture
def store(tmp_path) -> str:
    name = str(tmp_path / "images")
    write_head(name, HEAD)
    for shard in range(3):
        numbers = range(10 * shard, 10 * shard + 10)
        embeddings = np.stack([embedding(number) for number in numbers])
        write_shard(name, shard, HEAD, [key(number) for number in numbers], embeddings)
    return name


def slow_row_starts(tokens: int, spans: list[int], length: int, per_row: int) -> list[int]:
    """The definition, token by token."""
    starts, held = [0], 0
    for place in range(tokens - 1):
        full = place - starts[-1] == length
        if place in spans:
            full = full or held == per_row or place + SPAN.length - starts[-1] > length
            held += 1
        if full:
            starts.append(place)
            held = int(place in spans)
    return [*starts, tokens - 1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("per_row", [1, 2, 3, 9])
def test_row_starts_equal_the_definition(seed, per_row):
    random = np.random.default_rng(seed)
    gaps = random.integers(0, (5, 30, 200)[seed % 3], 60) * (random.random(60) < 0.7)
    spans = np.cumsum(gaps + SPAN.length) - SPAN.length + 1
    tokens = int(spans[-1] + SPAN.length + random.integers(1, 90))
    for length in (SPAN.length, 11, LENGTH):
        found = row_starts(tokens, spans, SPAN, length=length, per_row=per_row)
        assert found.tolist() == slow_row_starts(tokens, set(spans.tolist()), length, per_row)


def test_rows_of_text_alone_are_those_of_arithmetic():
    none = np.zeros(0, np.int64)
    assert row_starts(101, none, SPAN, length=20, per_row=1).tolist() == [0, 20, 40, 60, 80, 100]
    assert row_starts(102, none, SPAN, length=20, per_row=1)[-2:].tolist() == [100, 101]


@pytest.mark.parametrize("seed", range(4))
def test_every_image_stands_whole_in_one_row_and_every_other_token_is_learned_once(
    folder, store, seed
):
    made = documents(seed)
    images = RowImages(store=EmbeddingStore(store), per_row=2)
    rows = Rows(TokenDataset(folder("made", made)), LENGTH, images)
    expected_images = [image for _, found in made for _, image in found]
    firsts = set(np.cumsum([0, *(len(ids) for ids, _ in made)]).tolist())
    stream = [token for ids, _ in made for token in ids]
    seen, place = [], 0
    for index in range(len(rows)):
        row = rows[index]
        present = int((row.segments > 0).sum())
        is_soft = row.soft >= 0
        assert row.tokens[:present].tolist() == stream[place : place + present]
        assert not is_soft[present:].any() and not row.tokens[is_soft].any()
        held = is_soft.sum() // HEAD.tokens
        assert row.soft[is_soft].tolist() == list(range(held * HEAD.tokens))
        for number in range(2):
            if number < held:
                image = expected_images[len(seen)]
                found = next(n for n in range(30) if key(n) == image)
                np.testing.assert_array_equal(row.images[number], embedding(found))
                seen.append(image)
            else:
                assert not row.images[number].any()
        for here in range(present):
            target = place + here + 1
            is_target_soft = here + 1 < present and is_soft[here + 1]
            learned = target not in firsts and not is_target_soft
            assert row.weights[here] == learned, (index, here)
        assert not row.weights[present:].any()
        place += present
    assert seen == expected_images
    assert place == len(stream) - 1


def test_batches_bring_images_by_row_in_threads_and_processes(folder, store, tokenizer):
    config = DataConfig(
        tokenizer=tokenizer.name,
        train=(
            TokenSource(path=folder("one", documents(1))),
            TokenSource(path=folder("two", [([2, *range(5, 300), 1], [])])),
        ),
        held_out=(folder("three", documents(3)),),
        images=ImageRows(store=store, per_row=2),
        sequence_length=LENGTH,
        batch_rows=4,
        read_threads=0,
        prefetch_batches=2,
    )
    expected = take(config)
    assert {
        name: array.shape for name, array in vars(expected[0]).items() if array is not None
    } == {
        name: shape
        for name, (shape, _) in Layout(length=LENGTH, images=(2, 4, 6)).arrays(4).items()
    }
    assert sum((batch.soft_bt >= 0).sum() for batch in expected) > 0
    for change in ({"read_threads": 2}, {"worker_processes": 1}):
        for one, other in zip(take(replace(config, **change)), expected, strict=True):
            for name, array in vars(one).items():
                np.testing.assert_array_equal(array, getattr(other, name))
    with held_out_batches(config, batch_rows=4) as stream:
        assert sum((batch.soft_bt >= 0).sum() for batch in stream) == 4 * sum(
            len(i) for _, i in documents(3)
        )


def take(config: DataConfig) -> list:
    with batches(config, start_row=0, batch_indices=range(4)) as stream:
        return [next(stream) for _ in range(5)]


def test_what_does_not_fit_is_named(folder, store):
    images = RowImages(store=EmbeddingStore(store), per_row=2)
    dataset = TokenDataset(folder("made", documents(0)))
    with pytest.raises(UserError, match=r"made' has images: name the store of their embeddings"):
        Rows(dataset, LENGTH)
    with pytest.raises(UserError, match="data.sequence_length is 6, and an image of .* takes 7"):
        Rows(dataset, 6, images)
    other = TokenDataset(folder("other", [([2] * 30, [])], ImageSpan(before=2, tokens=9, after=1)))
    with pytest.raises(UserError, match="has 9 soft tokens an image, the embeddings in .* 4"):
        Rows(other, LENGTH, images)
    missing = Rows(
        TokenDataset(folder("missing", [([2, 3, 4, 0, 0, 0, 0, 4, 1], [(3, key(99))])])),
        LENGTH,
        images,
    )
    with pytest.raises(UserError, match=f"image {key(99).hex()[:16]}.* has no embeddings in"):
        missing[0]
