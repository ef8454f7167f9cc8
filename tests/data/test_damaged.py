"""`data.damaged`: rows that cannot be read end the run, or are left out and counted."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from gemma_train.data.config import DataConfig, ImageRows, TokenSource
from gemma_train.data.example import Batch
from gemma_train.data.images.store import DTYPE, Head, image_key, write_head, write_shard
from gemma_train.data.pipeline import batches, held_out_batches, listed_batches
from gemma_train.data.shards import ImageSpan, TokenDataset
from gemma_train.data.streams import training_rows
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.token_writer import TokenWriter
from gemma_train.drift import RESUMABLE_CHANGES
from gemma_train.errors import Damaged, UserError
from tests.data.conftest import assert_equal, take
from tests.data.teacher_store.made import CODEC, planned, write

READERS = [  # file, worker processes, threads
    ("bin", 0, 0),
    ("bin", 0, 2),
    ("bin", 1, 0),
    ("bin", 2, 1),
    ("offsets", 0, 2),
]


def read_by(config: DataConfig, workers: int, threads: int, **changes) -> DataConfig:
    return dataclasses.replace(config, worker_processes=workers, read_threads=threads, **changes)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def in_shard(config: DataConfig, rows: int) -> list[int]:
    """Those of the first rows of the stream that need the second shard of its first dataset."""
    folder, length = config.train[0].path, config.sequence_length
    shards = TokenDataset(folder).description.shards
    first, last = shards[0].tokens, shards[0].tokens + shards[1].tokens
    stream, found = training_rows(config), []
    for row in range(rows):
        where, number = stream.place(row), 0
        if folder in where:
            number = int(where.split()[1].replace(",", ""))
            if number * length < last and number * length + length >= first:
                found.append(row)
    return found


def rows_of(found: list[Batch]) -> list:
    return [batch.row(index) for batch in found for index in range(len(batch.tokens_bt))]


def assert_spared(found: list[Batch], whole: list[Batch], lost: list[int]) -> None:
    """Rows are what they were, bit for bit; those that are lost are padding, of no weight."""
    for number, (one, expected) in enumerate(zip(rows_of(found), rows_of(whole), strict=True)):
        for name, array in one._asdict().items():
            if array is None:
                continue
            if number in lost:
                assert (array == (-1 if name == "soft" else 0)).all()
            else:
                np.testing.assert_array_equal(array, expected._asdict()[name])


@pytest.mark.parametrize(("suffix", "workers", "threads"), READERS)
def test_a_damaged_shard_ends_the_run_in_one_line(config, workers, threads, suffix):
    file = Path(config.train[0].path) / f"tokens-00001.{suffix}"
    flip(file, 1)
    with pytest.raises(Damaged) as raised:
        take(read_by(config, workers, threads), 20)
    told = str(raised.value)
    assert f"{str(file)!r} is damaged in bytes 0 to " in told and "(block 0 of 1)" in told
    assert told.endswith("; or train without its rows: data.damaged='skip'") and "\n" not in told
    assert (raised.value.file, raised.value.exit_code) == (str(file), 2)


@pytest.mark.parametrize(("suffix", "workers", "threads"), READERS)
def test_a_damaged_shard_is_skipped_and_every_other_row_stays(
    config, workers, threads, suffix, caplog, capfd
):
    whole, lost = take(config, 20), in_shard(config, 120)
    assert 5 < len(lost) < 60
    file = Path(config.train[0].path) / f"tokens-00001.{suffix}"
    flip(file, 1)
    config, counts = read_by(config, workers, threads, damaged="skip"), []
    with batches(config, start_row=0, batch_indices=range(6)) as stream:
        found = []
        for _ in range(20):
            found.append(next(stream))
            counts.append(stream.damaged_rows)
    assert_spared(found, whole, lost)
    assert counts == [sum(row < 6 * step for row in lost) for step in range(1, 21)]
    told = caplog.text + capfd.readouterr().err
    assert "left out, and counted as damaged_rows" in told and str(file) in told
    assert 1 <= told.count("left out") <= max(workers, 1)


def test_a_cut_or_missing_shard_is_skipped_too(config):
    whole, lost = take(config, 20), in_shard(config, 120)
    file = Path(config.train[0].path) / "tokens-00001.bin"
    config = dataclasses.replace(config, damaged="skip")
    with batches(config, start_row=0, batch_indices=range(6)) as stream:
        file.write_bytes(file.read_bytes()[:3])
        assert_spared([next(stream) for _ in range(20)], whole, lost)
        assert stream.damaged_rows == len(lost)
    with pytest.raises(Damaged, match=r"tokens-00001.bin' has 3 bytes, it should have"):
        take(config, 1)
    file.unlink()
    with pytest.raises(Damaged, match=r"tokens-00001.bin' is missing"):
        take(config, 1)


def test_a_stream_that_is_resumed_skips_the_same_rows(config):
    lost = in_shard(config, 120)
    flip(Path(config.train[0].path) / "tokens-00001.bin", 9)
    config = dataclasses.replace(config, damaged="skip")
    with batches(config, start_row=30, batch_indices=range(6)) as stream:
        found = [next(stream) for _ in range(15)]
    assert_equal(found, take(config, 20)[5:])
    assert stream.damaged_rows == sum(row >= 30 for row in lost)


def test_held_out_and_listed_rows_are_never_skipped(config):
    flip(Path(config.held_out[0]) / "tokens-00000.bin", 9)
    config = dataclasses.replace(config, damaged="skip")
    with (
        held_out_batches(config, batch_rows=4) as stream,
        pytest.raises(Damaged, match=r"held_out/tokens-00000.bin' is damaged"),
    ):
        list(stream)
    assert stream.damaged_rows == 0
    listed = listed_batches(
        config, config.held_out, np.array([[0, 0]]), batch_rows=2, batch_indices=range(2)
    )
    with listed, pytest.raises(Damaged, match=r"tokens-00000.bin' is damaged"):
        next(listed)


def test_padding_at_the_end_of_held_out_text_is_not_counted(config):
    with held_out_batches(config, batch_rows=1_000) as stream:
        assert next(stream).empty_rows > 0
        assert stream.damaged_rows == 0


@pytest.mark.parametrize(("workers", "threads"), [(0, 2), (2, 1)])
def test_a_record_of_a_teacher_is_lost_with_its_row_alone(config, tmp_path, workers, threads):
    write(planned(config, tmp_path / "store", 120), config)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    indices = range(config.batch_rows)
    with batches(config, start_row=0, batch_indices=indices, teacher=store) as stream:
        whole = [next(stream) for _ in range(20)]
    file = tmp_path / "store" / "targets-00000.bin"
    flip(file, file.stat().st_size // 2)
    with (
        batches(config, start_row=0, batch_indices=indices, teacher=store) as stream,
        pytest.raises(Damaged, match=r"targets-00000.bin' is damaged: row .*data.damaged='skip'"),
    ):
        for _ in range(20):
            next(stream)
    config = read_by(config, workers, threads, damaged="skip")
    with batches(config, start_row=0, batch_indices=indices, teacher=store) as stream:
        found = [next(stream) for _ in range(20)]
    lost = [number for number, row in enumerate(rows_of(found)) if not row.segments.any()]
    assert_spared(found, whole, lost)
    assert stream.damaged_rows == len(lost) == 1


@pytest.fixture
def pictured(tmp_path, tokenizer) -> DataConfig:
    """Rows of 12 tokens, each with the one image of its document."""
    head = Head(encoder_sha256="ab" * 32, encoder="an encoder", side=8, tokens=4, width=6)
    keys = [image_key(b"%d" % number) for number in range(30)]
    writer = TokenWriter(
        epath.Path(tmp_path / "made"), 10_000, ImageSpan(before=2, tokens=4, after=1)
    )
    for number, key in enumerate(keys):
        writer.append([2, 5 + number, 3, 4, 0, 0, 0, 0, 4, 7, 8, 1], [(4, key)])
    writer.finish(tokenizer, {}, [])
    write_head(str(tmp_path / "images"), head)
    embeddings = np.random.default_rng(0).normal(size=(30, 4, 6)).astype(DTYPE)
    write_shard(str(tmp_path / "images"), 0, head, keys, embeddings)
    return DataConfig(
        tokenizer=tokenizer.name,
        train=(TokenSource(path=str(tmp_path / "made")),),
        images=ImageRows(store=str(tmp_path / "images"), per_row=2),
        sequence_length=12,
        batch_rows=5,
    )


def test_an_embedding_is_lost_with_the_rows_that_show_it(pictured, tmp_path):
    whole, file = take(pictured, 6), tmp_path / "images" / "embeddings-00000.bin"
    flip(file, 48 * 7 + 5)
    with pytest.raises(Damaged, match=r"embeddings-00000.bin' is damaged at image .*\(record 7\)"):
        take(pictured, 6)
    pictured = dataclasses.replace(pictured, damaged="skip")
    with batches(pictured, start_row=0, batch_indices=range(5)) as stream:
        found = [next(stream) for _ in range(6)]
    lost = [number for number, row in enumerate(rows_of(found)) if not row.segments.any()]
    assert_spared(found, whole, lost)
    assert stream.damaged_rows == len(lost) == 1


def test_where_rows_with_images_start_is_not_told_from_a_damaged_list(pictured, tmp_path):
    flip(tmp_path / "made" / "tokens-00000.images", 100)
    with pytest.raises(Damaged, match=r"tokens-00000.images' is damaged in bytes 0 to 1,200"):
        take(dataclasses.replace(pictured, damaged="skip"), 1)


def test_a_mistake_that_is_no_damage_is_not_skipped(config, monkeypatch):
    def refuse(name: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", name)

    config = dataclasses.replace(config, damaged="skip")
    with batches(config, start_row=0, batch_indices=range(6)) as stream:
        monkeypatch.setattr("gemma_train.storage.os.open", refuse)
        with pytest.raises(UserError, match=r"tokens-0000\d.bin' cannot be read \(Permission den"):
            next(stream)


def test_an_error_of_a_file_keeps_its_name_on_the_way_between_processes():
    error = pickle.loads(pickle.dumps(Damaged("'x' is damaged: mend it", "x")))
    assert (type(error), str(error), error.file) == (Damaged, "'x' is damaged: mend it", "x")


def test_a_run_that_met_damage_may_go_on_without_those_rows():
    assert {"data.damaged", "data.timeout_minutes"} <= RESUMABLE_CHANGES
