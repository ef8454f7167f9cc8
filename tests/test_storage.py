"""Writes that are whole or absent, whoever else writes."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from gemma_train import storage
from gemma_train.errors import UserError


def test_many_writers_of_one_file_leave_one_of_their_contents_whole(tmp_path):
    target = epath.Path(tmp_path / "shared.txt")
    contents = [f"{number} " * (1 + 997 * number % 5_000) for number in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: storage.write_whole(target, content), contents))
    assert target.read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["shared.txt"]


def test_a_reader_among_writers_never_sees_a_part(tmp_path):
    target = epath.Path(tmp_path / "shared.bin")
    contents = [bytes([number]) * (1 + 8_000 * number) for number in range(8)]
    storage.write_whole(target, contents[0])
    with ThreadPoolExecutor(4) as threads:
        done = [
            threads.submit(storage.write_whole, target, contents[turn % 8]) for turn in range(300)
        ]
        while not all(one.done() for one in done):
            assert target.read_bytes() in contents
        for one in done:
            one.result()


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    target = epath.Path(tmp_path / "kept.txt")
    storage.write_whole(target, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(type(target), "replace", _refuse)
        storage.write_whole(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.fixture
def without_gcsfs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.parametrize("reach", [storage.path, storage.matching])
def test_a_bucket_that_nothing_reaches_is_told_with_what_would(reach, without_gcsfs):
    with pytest.raises(UserError) as refused:
        reach("gs://bucket/run")
    assert str(refused.value) == (
        "'gs://bucket/run' is in a bucket, and gcsfs is not installed: pip install -e '.[gcs]'"
    )


@pytest.mark.parametrize("name", ["gs:/bucket/run", "s3://bucket/run", "https://host/run"])
def test_what_only_looks_like_a_bucket_is_no_local_folder(name):
    with pytest.raises(UserError, match="is neither local nor in a bucket: give a local path"):
        storage.path(name)


def test_a_colon_alone_is_a_name(without_gcsfs):
    assert str(storage.path("runs/a:b")) == "runs/a:b"
    assert str(storage.path("a:b")) == "a:b"


def test_parts_that_killed_writers_left_are_removed_once_they_are_old(tmp_path):
    names = (".a.bin.0.writing", ".b.bin.1.writing", ".teacher_sum", "c.writing")
    for name in names:
        (tmp_path / name).touch()
        old = time.time() - (3500 if name.startswith(".b") else 3700)
        os.utime(tmp_path / name, (old, old))
    storage.remove_abandoned(epath.Path(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:]}
    storage.remove_abandoned(epath.Path(tmp_path / "nowhere"))


def _refuse(*_: object) -> None:
    raise OSError("no room")
