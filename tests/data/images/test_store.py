"""The store of image embeddings: what is written is read, and damage is told in a line."""

import json
import pickle
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from gemma_train.data.images.store import (
    DTYPE,
    EmbeddingStore,
    Head,
    finished_shards,
    image_key,
    read_head,
    verify,
    write_head,
    write_shard,
)
from gemma_train.errors import UserError

HEAD = Head(encoder_sha256="ab" * 32, encoder="runs/encoder", side=28, tokens=4, width=6)


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, HEAD.tokens, HEAD.width)).astype(DTYPE)


def keys(count: int, first: int = 0) -> list[bytes]:
    """One of them with zeros at its end."""
    found = [image_key(f"image {first + number}".encode()) for number in range(count)]
    return [*found[:-1], found[-1][:-2] + b"\0\0"]


@pytest.fixture
def folder(tmp_path):
    """Two shards, of five images and of three."""
    name = str(tmp_path / "store")
    write_head(name, HEAD)
    write_shard(name, 0, HEAD, keys(5), embeddings(5))
    write_shard(name, 1, HEAD, keys(3, first=5), embeddings(3, seed=1))
    return name


def test_an_image_is_known_by_its_bytes():
    assert image_key(b"abc") == sha256(b"abc").digest()


def test_what_is_written_is_read_by_key(folder):
    store = EmbeddingStore(folder)
    assert (len(store), finished_shards(folder), store.head) == (8, [0, 1], HEAD)
    for key, expected in zip(keys(5), embeddings(5), strict=True):
        assert key in store
        assert store.read(key).tobytes() == expected.tobytes()
    for key, expected in zip(keys(3, first=5), embeddings(3, seed=1), strict=True):
        assert store.read(key).tobytes() == expected.tobytes()
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(keys(5)[0]).tobytes() == embeddings(5)[0].tobytes()
    verify(folder)


def test_an_image_that_is_not_there_is_named(folder):
    store, missing = EmbeddingStore(folder), image_key(b"another")
    assert missing not in store
    with pytest.raises(UserError, match=f"image {missing.hex()[:16]}.* has no embeddings in"):
        store.read(missing)


def test_an_empty_store_has_nothing(tmp_path):
    write_head(str(tmp_path), HEAD)
    store = EmbeddingStore(str(tmp_path))
    assert len(store) == 0
    assert image_key(b"any") not in store


@pytest.mark.parametrize("place", [0, 47, 100, 239])
def test_a_flipped_bit_is_found_when_its_record_is_read(folder, place, tmp_path):
    file = tmp_path / "store" / "embeddings-00000.bin"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    damaged = place // HEAD.record_bytes
    store = EmbeddingStore(folder)
    with pytest.raises(UserError, match=rf"embeddings-00000.bin' is damaged .*record {damaged}\)"):
        store.read(keys(5)[damaged])
    store.read(keys(5)[(damaged + 1) % 5])
    with pytest.raises(UserError, match="is damaged"):
        verify(folder)


@pytest.mark.parametrize(
    ("name", "keep", "told"),
    [
        ("embeddings-00000.bin", 100, "has 100 bytes, its 5 images take 240"),
        ("embeddings-00001.bin", None, "has 0 bytes, its 3 images take 144"),
        ("embeddings-00001.keys", 100, "has 100 bytes, no multiple of 36"),
        ("embeddings-00001.keys", 0, "has 0 bytes, no multiple of 36"),
        ("store.json", 20, "is garbled"),
        ("store.json", None, "holds no image embeddings"),
    ],
)
def test_what_is_cut_or_gone_is_told_when_the_store_is_opened(folder, name, keep, told, tmp_path):
    file = tmp_path / "store" / name
    file.unlink() if keep is None else file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=told):
        EmbeddingStore(folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"format_version": 1}', '{"format_version": 2}', "\ufeff{", '"x"'],
)
def test_a_sidecar_of_something_else_is_one_line(folder, content, tmp_path):
    (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(UserError, match=r"garbled|format version 2"):
        read_head(folder)


@pytest.mark.parametrize("field", ["side", "tokens", "width"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, None])
def test_numbers_that_no_store_has_are_garbled(folder, field, value, tmp_path):
    file = tmp_path / "store" / "store.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(UserError, match=rf"garbled \(Expected `int`.* at `\$.{field}`\)"):
        read_head(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("encoder_sha256", "cd" * 32), ("side", 56), ("tokens", 16), ("width", 8)]
)
def test_another_encoder_does_not_add_to_a_store(folder, field, value):
    write_head(folder, replace(HEAD, encoder="the same, elsewhere"))
    with pytest.raises(UserError, match=f"were made with {field} .*{getattr(HEAD, field)}"):
        write_head(folder, replace(HEAD, **{field: value}))
