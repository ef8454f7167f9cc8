import json
import pickle
from hashlib import sha256

import numpy as np
import pytest
from etils import epath

from gemma_train.data.shards import (
    SIDECAR,
    ImageSpan,
    TokenDataset,
    check_tokenizer,
    check_vocabulary,
    read_description,
    verify,
)
from gemma_train.data.token_writer import TokenWriter
from gemma_train.errors import UserError


@pytest.fixture
def folder(write_dataset, made_documents, tmp_path):
    return write_dataset(tmp_path / "made", made_documents(), shard_tokens=100)


def test_windows_read_the_stream_across_shards(folder, made_documents):
    dataset = TokenDataset(folder)
    stream = np.array([token for document in made_documents() for token in document])
    starts = np.flatnonzero(stream == 2)
    assert len(dataset) == stream.size
    assert len(dataset.description.shards) > 4
    for start, stop in [(0, 1), (0, stream.size), (95, 320), (stream.size - 3, stream.size + 9)]:
        tokens, found, _ = dataset.read(start, stop)
        assert tokens.tolist() == stream[start:stop].tolist()
        assert found.tolist() == (starts[(starts >= start) & (starts < stop)] - start).tolist()


def test_documents_never_cross_shards(folder):
    for number, shard in enumerate(read_description(folder).shards):
        tokens = np.fromfile(f"{folder}/tokens-{number:05d}.bin", "<u4")
        offsets = np.fromfile(f"{folder}/tokens-{number:05d}.offsets", "<i8")
        assert (tokens.size, offsets.size) == (shard.tokens, shard.documents)
        assert (tokens[offsets] == 2).all()
        assert tokens[-1] == 1


def test_a_shard_holds_whole_documents_up_to_its_size(write_dataset, tmp_path):
    made = write_dataset(tmp_path / "made", [[2, 5, 1]] * 5, shard_tokens=6)
    assert [shard.documents for shard in read_description(made).shards] == [2, 2, 1]


def test_an_opened_dataset_is_pickled_without_its_maps(folder):
    dataset = TokenDataset(folder)
    dataset.read(0, 10)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.read(3, 9)[0].tolist() == dataset.read(3, 9)[0].tolist()


def test_writing_over_leftovers_removes_them(write_dataset, made_documents, tmp_path):
    made = write_dataset(tmp_path / "made", made_documents(count=90), shard_tokens=100)
    again = write_dataset(tmp_path / "made", [[2, 1]], shard_tokens=100)
    assert made == again
    assert len(list((tmp_path / "made").iterdir())) == 5
    assert len(TokenDataset(again)) == 2


def test_an_unfinished_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no finished dataset \(no dataset.json\): run"):
        TokenDataset(str(tmp_path))


def test_a_bucket_is_refused_for_training():
    with pytest.raises(UserError, match="'gs://bucket/x' must be local"):
        TokenDataset("gs://bucket/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-20], "garbled"),
        (lambda content: "[]", "garbled"),
        (lambda content: "{}", "garbled"),
        (lambda content: content.replace('"licence"', '"license"'), "garbled"),
        (
            lambda content: content.replace('"format_version": 3', '"format_version": 9'),
            "version 9",
        ),
        (
            lambda content: content.replace('"format_version": 3', '"format_version": 2'),
            "version 2, this release reads 3: remove its folder and run gemma-train prepare again",
        ),
    ],
)
def test_a_wrong_sidecar_is_named(folder, tmp_path, change, message):
    sidecar = tmp_path / "made" / SIDECAR
    sidecar.write_text(change(sidecar.read_text()))
    with pytest.raises(UserError, match=message) as error:
        TokenDataset(folder)
    assert SIDECAR in str(error.value)


@pytest.mark.parametrize("suffix", ["bin", "offsets"])
def test_a_missing_or_truncated_shard_is_named(folder, tmp_path, suffix):
    shard = tmp_path / "made" / f"tokens-00001.{suffix}"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"00001.{suffix}' has {size - 4} bytes, .* have {size}"):
        TokenDataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"00001.{suffix}' is missing"):
        TokenDataset(folder)


def test_verification_finds_a_single_flipped_bit(folder, tmp_path):
    verify(folder)
    shard = tmp_path / "made" / "tokens-00002.bin"
    content = bytearray(shard.read_bytes())
    content[17] ^= 4
    shard.write_bytes(content)
    TokenDataset(folder)
    with pytest.raises(UserError, match=r"tokens-00002.bin' is damaged"):
        verify(folder)


@pytest.mark.parametrize("places", [[0, 2**60], [0, 10, 5, 20]], ids=str)
def test_documents_that_do_not_follow_each_other_are_refused(folder, tmp_path, places):
    file = tmp_path / "made/tokens-00000.offsets"
    offsets = np.fromfile(file, "<i8")
    offsets[: len(places)] = places
    offsets.tofile(file)
    dataset = TokenDataset(folder)
    with pytest.raises(UserError, match="tokens-00000"):
        dataset.document_starts()
    with pytest.raises(UserError, match="tokens-00000"):
        dataset.read(0, 100)


def test_another_tokenizer_is_refused_with_both_checksums(folder, tokenizer):
    description = read_description(folder)
    check_tokenizer(folder, description, tokenizer.name, tokenizer.sha256)
    with pytest.raises(UserError, match=f"{tokenizer.sha256[:12]}.*'other' is 0123456789ab"):
        check_tokenizer(folder, description, "other", "0123456789abcdef")


def test_a_model_with_too_few_embedding_rows_is_refused(folder):
    check_vocabulary(folder, 600)
    with pytest.raises(UserError, match="ids up to 599, but the model's vocabulary is 512"):
        check_vocabulary(folder, 512)


def test_the_sidecar_says_what_the_dataset_holds(folder, tmp_path, made_documents):
    content = json.loads((tmp_path / "made" / SIDECAR).read_text())
    assert content["sources"][0]["licence"] == "CC0-1.0"
    assert TokenDataset(folder).description.total("documents") == len(made_documents())


SPAN = ImageSpan(before=2, tokens=4, after=1)


def image_documents(random: np.random.Generator, count: int) -> list[tuple[list[int], list]]:
    """(ids, images) of documents of none to three images between words."""
    documents = []
    for number in range(count):
        ids, images = [2], []
        for image in range(random.integers(4)):
            ids += random.integers(5, 600, random.integers(6)).tolist()
            images.append((len(ids) + SPAN.before, sha256(b"%d %d" % (number, image)).digest()))
            ids += [3, 4, *[0] * SPAN.tokens, 4]
        documents.append(([*ids, 1], images))
    return documents


def test_images_are_told_where_their_soft_tokens_start(tmp_path, tokenizer):
    documents = image_documents(np.random.default_rng(0), 40)
    writer, folder = TokenWriter(epath.Path(tmp_path), 100, SPAN), str(tmp_path)
    for document in documents:
        writer.append(*document)
    writer.finish(tokenizer, {}, [])
    dataset, base, expected = TokenDataset(folder), 0, []
    assert dataset.description.image == SPAN
    assert len(dataset.description.shards) > 3
    for ids, images in documents:
        expected += [(base + start, key) for start, key in images]
        base += len(ids)
    assert dataset.image_starts().tolist() == [start for start, _ in expected]
    for first, last in ((0, len(dataset)), (90, 230), (expected[3][0], expected[5][0]), (0, 1)):
        tokens, _, images = dataset.read(first, last)
        here = [(start - first, key) for start, key in expected if first <= start < last]
        assert images.tolist() == here
        assert all(not tokens[start : start + SPAN.tokens].any() for start, _ in here)
    verify(folder)
    (tmp_path / "tokens-00001.images").write_bytes(b"")
    with pytest.raises(UserError, match="00001.images' has 0 bytes, it should have"):
        TokenDataset(folder)
