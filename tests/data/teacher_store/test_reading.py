"""Stores of made-up targets: written by several, read at random, refused where anything differs."""

import contextlib
import dataclasses
import gc
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gemma_train import storage
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Layout, Row
from gemma_train.data.lesson import lesson, missing_rows, taught_rows
from gemma_train.data.pipeline import batches, listed_batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset
from gemma_train.data.streams import training_rows
from gemma_train.data.teacher_store.codec import codec
from gemma_train.data.teacher_store.plan import Plan, plan_of
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import (
    Origin,
    check_origin,
    read_description,
    verify,
    write_shard,
)
from gemma_train.errors import UserError
from gemma_train.samplers import TopK

LENGTH, VOCABULARY, SAMPLER = 16, 600, TopK(candidates=4)
CODEC = codec(SAMPLER, vocabulary=VOCABULARY, length=LENGTH)
ORIGIN = Origin(
    tokenizer_sha256="0" * 64,
    vocabulary=VOCABULARY,
    sequence_length=LENGTH,
    sampler=repr(SAMPLER),
    temperature=1.0,
    seed=0,
    teacher="runs/large",
    parameters_sha256="1" * 64,
    parameters=1000,
    dtype="float32",
)


@pytest.fixture
def config(write_dataset, made_documents, tokenizer, tmp_path) -> DataConfig:
    one = write_dataset(tmp_path / "one", made_documents(1, count=120))
    two = write_dataset(tmp_path / "two", made_documents(2, count=60))
    return DataConfig(
        tokenizer=tokenizer.name,
        train=(TokenSource(path=one, weight=3), TokenSource(path=two, weight=1)),
        sequence_length=LENGTH,
        batch_rows=6,
        read_threads=0,
        prefetch_batches=2,
    )


def made_targets(row: Row) -> Row:
    """A row with targets that follow from its own tokens."""
    full = Layout(length=LENGTH, candidates=SAMPLER.candidates).padding(1).row(0)
    for one, other in zip(full[:5], row[:5], strict=True):
        one[:] = other
    steps = np.arange(SAMPLER.candidates)
    full.candidates[:] = (row.tokens[:, None] + 7 * steps) % VOCABULARY
    full.probabilities[:] = [0.7, 0.2, 0.08, 0.02]
    return full


def planned(config: DataConfig, folder: Path, stream_rows: int, shard_rows: int = 10) -> Plan:
    found = lesson(config, shard_rows)
    rows = taught_rows(config, found, stream_rows)
    return plan_of(str(folder), ORIGIN, found, rows, stream_rows=stream_rows)


def write(plan: Plan, config: DataConfig, shards=None) -> None:
    """Write shards (all, unless they are named) and, if all are there, the sidecar."""
    paths = [dataset.path for dataset in plan.head.lesson.datasets]
    datasets = [Rows(TokenDataset(path), LENGTH) for path in paths]
    folder = Path(plan.folder)
    folder.mkdir(exist_ok=True)
    for number in plan.shards if shards is None else shards:
        rows = plan.shards[number]
        full = [made_targets(datasets[dataset][row]) for dataset, row in rows.tolist()]
        records = [CODEC.encode(row) for row in full]
        tokens = sum(int((row.weights > 0).sum()) for row in full)
        write_shard(plan.folder, number, plan.head, rows=rows, records=records, tokens=tokens)
    plan.conclude(plan.finished())


def take(config: DataConfig, count: int, folder: Path | None = None, indices=None) -> list:
    store = TeacherStore(str(folder), CODEC) if folder else None
    indices = range(config.batch_rows) if indices is None else indices
    with batches(config, start_row=0, batch_indices=indices, teacher=store) as stream:
        return [next(stream) for _ in range(count)]


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 3), (2, 1)])
def test_batches_bring_their_rows_own_targets(config, tmp_path, workers, threads):
    write(planned(config, tmp_path / "store", 60), config)
    config = dataclasses.replace(config, worker_processes=workers, read_threads=threads)
    for plain, full in zip(take(config, 10), take(config, 10, tmp_path / "store"), strict=True):
        np.testing.assert_array_equal(full.tokens_bt, plain.tokens_bt)
        for index in range(6):
            row, expected = full.row(index), made_targets(plain.row(index))
            taught = expected.weights > 0
            found = np.take_along_axis(
                row.probabilities, np.argsort(-row.probabilities, axis=1, kind="stable"), axis=1
            )
            assert not row.probabilities[~taught].any()
            np.testing.assert_allclose(found[taught], expected.probabilities[taught], rtol=0.05)
            order = np.sort(expected.candidates, axis=1)
            np.testing.assert_array_equal(row.candidates[taught], order[taught])


def test_hosts_read_the_targets_of_their_own_rows(config, tmp_path):
    write(planned(config, tmp_path / "store", 60), config)
    whole = take(config, 2, tmp_path / "store")
    part = take(config, 2, tmp_path / "store", indices=[1, 4])
    for one, all_ in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one.probabilities_btq, all_.probabilities_btq[[1, 4]])
        np.testing.assert_array_equal(one.candidates_btq, all_.candidates_btq[[1, 4]])


def test_a_lesson_is_the_streams_rows_each_once_in_the_order_of_their_first_appearance(config):
    found = lesson(config)
    everything = taught_rows(config, found, 10_000)
    lengths = [len(Rows(TokenDataset(source.path), LENGTH)) for source in config.train]
    assert len(everything) == sum(lengths)
    assert len({tuple(row) for row in everything.tolist()}) == len(everything)
    rows = taught_rows(config, found, 30)
    np.testing.assert_array_equal(rows, everything[: len(rows)])
    paths = [dataset.path for dataset in found.datasets]
    listed = listed_batches(config, paths, rows, batch_rows=6, batch_indices=range(6))
    for one, other in zip(listed, take(config, 5), strict=True):
        np.testing.assert_array_equal(one.tokens_bt, other.tokens_bt)


def test_the_last_listed_batch_is_filled_with_rows_of_no_weight(config):
    paths = [source.path for source in config.train]
    rows = np.array([[0, 3], [1, 2], [0, 1]])
    with listed_batches(config, paths, rows, batch_rows=2, batch_indices=range(2)) as stream:
        first, second = stream
    assert first.weights_bt.sum(axis=1).all()
    assert second.weights_bt[0].any() and not second.weights_bt[1].any()


def test_a_dataset_that_is_listed_twice_is_taught_once(config, tmp_path):
    twice = dataclasses.replace(config, train=(*config.train, config.train[1]))
    plan = planned(twice, tmp_path / "store", 10_000)
    assert len(plan.head.lesson.datasets) == 2
    rows = [tuple(row) for part in plan.shards.values() for row in part.tolist()]
    assert len(set(rows)) == len(rows)
    write(plan, twice)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    assert missing_rows(twice, store, 10_000) == 0
    assert missing_rows(config, store, 10_000) == 0


def test_a_source_that_is_not_taught_has_no_targets_and_takes_no_room(config, tmp_path):
    sources = config.train[0], dataclasses.replace(config.train[1], taught=False)
    config = dataclasses.replace(config, train=sources)
    plan = planned(config, tmp_path / "store", 60)
    assert [dataset.path for dataset in plan.head.lesson.datasets] == [sources[0].path]
    write(plan, config)
    batch = take(config, 1, tmp_path / "store")[0]
    silent = ~batch.probabilities_btq.any(axis=(1, 2))
    assert 1 <= silent.sum() <= 2
    none = tuple(dataclasses.replace(source, taught=False) for source in sources)
    with pytest.raises(UserError, match="no source of data.train is taught"):
        lesson(dataclasses.replace(config, train=none))


def test_writers_of_disjoint_shards_make_the_same_store_as_one(config, tmp_path):
    whole, parts = (planned(config, tmp_path / name, 60) for name in ("whole", "parts"))
    write(whole, config)
    assert list(parts.shards) == [0, 1, 2, 3, 4, 5]
    write(parts, config, shards=(1, 3, 5))
    assert parts.conclude(parts.finished()) is None
    with pytest.raises(UserError, match="holds no finished teacher store"):
        TeacherStore(str(tmp_path / "parts"), CODEC)
    write(parts, config, shards=(0, 2, 4))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        content = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert content[0] == content[1], name


def test_a_longer_run_adds_to_a_store_and_touches_nothing_in_it(config, tmp_path):
    write(planned(config, tmp_path / "store", 25), config)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    assert missing_rows(config, store, 25) == 0
    assert missing_rows(config, store, 60) == 35
    before = {path: path.read_bytes() for path in (tmp_path / "store").glob("targets-*")}
    longer = planned(config, tmp_path / "store", 60)
    assert [len(rows) for rows in longer.shards.values()] == [10, 10, 10, 5]
    assert list(longer.shards) == [3, 4, 5, 6]
    write(longer, config)
    assert {path: path.read_bytes() for path in before} == before
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    assert missing_rows(config, store, 60) == 0
    for shorter in (planned(config, tmp_path / "store", rows) for rows in (25, 60)):
        assert not shorter.shards
        assert shorter.conclude({}) == store.description
    verify(str(tmp_path / "store"))
    assert store.description.total("rows") == sum(store.description.dataset_rows) == 60


def test_another_order_and_another_dataset_add_what_is_missing_alone(config, tmp_path):
    one = dataclasses.replace(config, train=config.train[:1])
    write(planned(one, tmp_path / "store", 60), one)
    other = dataclasses.replace(config, shuffle_seed=3, train=config.train[::-1])
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    with pytest.raises(UserError, match="was made from"):
        missing_rows(other, store, 60)
    plan = planned(other, tmp_path / "store", 60)
    assert 15 < sum(map(len, plan.shards.values())) < 60
    write(plan, other)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    assert missing_rows(one, store, 60) == missing_rows(other, store, 60) == 0
    for each in (one, other):
        for plain, full in zip(take(each, 10), take(each, 10, tmp_path / "store"), strict=True):
            np.testing.assert_array_equal(full.probabilities_btq.any(axis=-1), plain.weights_bt > 0)


def test_a_shard_that_lost_its_records_is_written_once_more(config, tmp_path):
    plan = planned(config, tmp_path / "store", 60)
    write(plan, config)
    lost = tmp_path / "store" / "targets-00002.bin"
    content, sidecar = lost.read_bytes(), (tmp_path / "store" / "teacher.json").read_bytes()
    lost.unlink()
    again = planned(config, tmp_path / "store", 60)
    assert list(again.shards) == [2]
    assert again.finished() == {}
    write(again, config)
    assert lost.read_bytes() == content
    assert (tmp_path / "store" / "teacher.json").read_bytes() == sidecar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shuffle_seed": 1}, "data.shuffle_seed 0 there, 1 here"),
        ({"train": "swapped"}, r"data.weights \(3.0, 1.0\) there, \(1.0, 3.0\) here"),
    ],
)
def test_shards_that_another_run_began_are_not_taken_over(config, tmp_path, change, message):
    write(planned(config, tmp_path / "store", 30), config, shards=(0, 1))
    if change == {"train": "swapped"}:
        weights = zip(config.train, (1, 3), strict=True)
        change = {"train": tuple(dataclasses.replace(s, weight=weight) for s, weight in weights)}
    other = planned(dataclasses.replace(config, **change), tmp_path / "store", 30)
    with pytest.raises(UserError, match=message):
        other.finished()
    cure = "--shard-tokens 160 there, 112 here.*the command that began it: --shard-tokens 160$"
    with pytest.raises(UserError, match=cure):
        planned(config, tmp_path / "store", 30, shard_rows=7).finished()
    with pytest.raises(UserError, match="it holds 10 rows from .* due are 5 from"):
        planned(config, tmp_path / "store", 15).finished()


def test_a_dataset_made_anew_since_a_kill_is_refused_with_both_sums(
    config, tmp_path, write_dataset, made_documents
):
    plan = planned(config, tmp_path / "store", 60)
    write(plan, config, shards=(0, 1))
    before = plan.head.lesson.datasets[0]
    documents = [document[::-1] for document in made_documents(1, count=120)]
    write_dataset(tmp_path / "one", documents)
    anew = planned(config, tmp_path / "store", 60)
    np.testing.assert_array_equal(anew.shards[0], plan.shards[0])  # the rows do not tell
    after = anew.head.lesson.datasets[0]
    message = (
        f"of dataset.json of '{before.path}' {before.sha256[:12]}... there, '{after.path}' "
        f"{after.sha256[:12]}... here"
    )
    with pytest.raises(UserError, match=message):
        anew.finished()


def test_a_dataset_that_was_moved_is_read_where_the_config_says(config, tmp_path):
    write(planned(config, tmp_path / "store", 25), config)
    moved = tmp_path / "elsewhere"
    Path(config.train[0].path).rename(moved)
    sources = dataclasses.replace(config.train[0], path=str(moved)), config.train[1]
    config = dataclasses.replace(config, train=sources)
    plan = planned(config, tmp_path / "store", 60)
    assert [dataset.path for dataset in plan.head.lesson.datasets] == [s.path for s in sources]
    write(plan, config)
    assert missing_rows(config, TeacherStore(str(tmp_path / "store"), CODEC), 60) == 0


def test_rows_of_another_order_are_missed_whole_epochs_or_parts(config):
    stream = training_rows(config)
    for rows in (7, 60, 10_000):
        for component in (0, 1):
            found = stream.distinct(component, rows)
            _, expected = stream.first_epoch(component, rows)
            assert sorted(found.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokenizer_sha256", "2" * 64, "tokenizer '0000.*' there, '2222.*' here"),
        ("vocabulary", 601, "model.vocabulary 600 there, 601 here"),
        ("sequence_length", 32, "data.sequence_length 16 there, 32 here"),
        ("sampler", repr(TopK(candidates=5)), "loss.sampler .*candidates=4.* there, .*=5.* here"),
        ("temperature", 2.0, "loss.temperature 1.0 there, 2.0 here"),
        ("seed", 1, "loss.seed 0 there, 1 here"),
        ("parameters_sha256", "3" * 64, r"parameters \(SHA-256\) '1111.*' there, '3333.*' here"),
        ("parameters", 7, "number of parameters 1000 there, 7 here"),
        ("dtype", "bfloat16", "loss.teacher.dtype 'float32' there, 'bfloat16' here"),
        ("encoder_sha256", "4" * 64, r"images' encoder \(SHA-256\) None there, '4444.*' here"),
    ],
)
def test_every_difference_of_origin_is_refused_with_both_values(field, value, message):
    with pytest.raises(UserError, match=message) as raised:
        check_origin("store", ORIGIN, dataclasses.replace(ORIGIN, **{field: value}))
    assert "\n" not in str(raised.value)


def test_a_teacher_is_known_by_its_parameters_and_not_by_its_folder():
    check_origin("store", ORIGIN, dataclasses.replace(ORIGIN, teacher="elsewhere"))
    check_origin(
        "store", ORIGIN, dataclasses.replace(ORIGIN, parameters_sha256=None, parameters=None)
    )


def test_rows_of_other_tokens_are_refused_by_dataset_row_and_position(config, tmp_path):
    plan = planned(config, tmp_path / "store", 60)
    write(plan, config)
    dataset, number = plan.shards[0][0].tolist()
    path = plan.head.lesson.datasets[dataset].path
    tokens = Path(path) / "tokens-00000.bin"
    changed = bytearray(tokens.read_bytes())
    place = 4 * (number * LENGTH + 5)
    was = int.from_bytes(changed[place : place + 4], "little")
    changed[place : place + 4] = (was ^ 1).to_bytes(4, "little")
    tokens.write_bytes(changed)
    message = (
        f"row {number:,} of dataset '{path}' has token {was ^ 1} at position 5, teacher store "
        f".* was made with {was}"
    )
    with pytest.raises(UserError, match=message):
        take(config, 1, tmp_path / "store")


def test_another_dataset_is_refused(config, tmp_path, write_dataset, made_documents):
    write(planned(config, tmp_path / "store", 60), config)
    other = write_dataset(tmp_path / "other", made_documents(9, count=60))
    config = dataclasses.replace(config, train=(config.train[0], TokenSource(path=other)))
    with pytest.raises(UserError, match=r"was made from .*one.*two.*, not from .*other.* \("):
        take(config, 1, tmp_path / "store")


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
    file.write_bytes(b"{" if how == "garbled" else content[:-3] if how == "cut" else content)
    if how == "missing":
        file.unlink()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_in_a_record_is_found_when_it_is_read(config, tmp_path, workers):
    write(planned(config, tmp_path / "store", 60), config)
    damage(tmp_path / "store" / "targets-00000.bin", "flipped")
    config = dataclasses.replace(config, worker_processes=workers, read_threads=1)
    with pytest.raises(UserError, match=r"targets-00000.bin' is damaged: row \d+ of dataset"):
        take(config, 2, tmp_path / "store")
    with pytest.raises(UserError, match=r"targets-00000.bin' is damaged \(its SHA-256 is"):
        verify(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("targets-00001.bin", "cut", r"targets-00001.bin' has [\d,]+ bytes, it should have"),
        ("targets-00001.bin", "missing", "targets-00001.bin' is missing: run gemma-train teacher"),
        ("targets-00001.rows", "flipped", r"targets-00001.rows' is damaged \(its SHA-256"),
        ("targets-00001.rows", "cut", r"targets-00001.rows' is damaged \(its SHA-256"),
        ("targets-00001.rows", "missing", "targets-00001.rows' is missing"),
        ("teacher.json", "garbled", r"teacher.json' is garbled \(.*remove that file and"),
        ("teacher.json", "missing", r"holds no finished teacher store \(no teacher.json\)"),
    ],
)
def test_damage_is_found_when_a_store_is_opened(config, tmp_path, name, how, message):
    write(planned(config, tmp_path / "store", 60), config)
    damage(tmp_path / "store" / name, how)
    with pytest.raises(UserError, match=message) as raised:
        TeacherStore(str(tmp_path / "store"), CODEC)
    assert "\n" not in str(raised.value)


def test_a_shard_cut_after_the_store_was_opened_is_found_too(config, tmp_path):
    write(planned(config, tmp_path / "store", 60), config)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    file = tmp_path / "store" / "targets-00000.bin"
    os.truncate(file, file.stat().st_size // 2)
    with (
        pytest.raises(UserError, match="is damaged"),
        batches(config, start_row=0, batch_indices=range(6), teacher=store) as stream,
    ):
        for _ in range(3):
            next(stream)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 2}', "null", "\x00"])
def test_sidecars_and_notes_that_are_none_are_named(config, tmp_path, content):
    plan = planned(config, tmp_path / "store", 60)
    write(plan, config)
    (tmp_path / "store" / "targets-00002.json").write_text(content)
    with pytest.raises(UserError, match=r"targets-00002.json' is garbled"):
        plan.finished()
    (tmp_path / "store" / "teacher.json").write_text(content)
    with pytest.raises(UserError, match=r"teacher.json' is garbled"):
        read_description(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"{", b"", "Expected `object`, got `str`"),
        (b"{", b"\xff", "JSON is malformed: invalid character (byte 0)"),
        (b'"seed"', b'"sead"', "Object missing required field `seed` - at `$.head.origin`"),
        (b'"seed": 0', b'"seed": "no"', "Expected `int`, got `str` - at `$.head.origin.seed`"),
        (b'"seed": 0', b'"seed": -1', "Expected `int` >= 0 - at `$.head.origin.seed`"),
        (b'"order"', b'"odrer"', "Object missing required field `order` - at `$.head.lesson`"),
        (b'"parameters": 1000', b'"parameters": null', "it does not say of which parameters"),
    ],
)
def test_what_is_wrong_in_a_sidecar_is_said_plainly(config, tmp_path, old, new, told):
    write(planned(config, tmp_path / "store", 10), config)
    sidecar = tmp_path / "store" / "teacher.json"
    content = sidecar.read_bytes()
    assert old in content
    sidecar.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        read_description(str(tmp_path / "store"))
    line = str(raised.value)
    assert line.startswith(f"{str(sidecar)!r} is garbled ({told}")
    assert line.endswith("): remove that file and run gemma-train teacher again")


EDITS = (5, "4", None, -1, 2.5, True, [], {}, "", 10**30)


@pytest.mark.parametrize("value", EDITS, ids=str)
@pytest.mark.parametrize("field", ["rows", "bytes", "tokens", "rows_sha256"])
def test_counts_that_were_edited_by_hand_are_named(config, tmp_path, field, value):
    plan = planned(config, tmp_path / "store", 10)
    write(plan, config)
    sidecar, note = (tmp_path / "store" / name for name in ("teacher.json", "targets-00000.json"))
    accepted = field == "tokens" and value in (5, 10**30) and value is not True
    accepted = accepted or (field == "rows_sha256" and value == plan.finished()[0].rows_sha256)
    for file, read in (
        (note, plan.finished),
        (sidecar, lambda: TeacherStore(str(tmp_path / "store"), CODEC)),
        (sidecar, lambda: planned(config, tmp_path / "store", 60)),
    ):
        before = file.read_text()
        content = json.loads(before)
        (content["shard"] if file == note else content["shards"][0])[field] = value
        file.write_text(json.dumps(content))
        if accepted:
            read()
        else:
            with pytest.raises(UserError) as raised:
                read()
            assert "\n" not in str(raised.value)
        file.write_text(before)


def test_whatever_is_broken_in_a_store_is_refused_or_does_not_matter(config, tmp_path):
    """Bits flipped, ends cut and JSON edited at random: nothing but a `UserError`, or the rows."""
    folder, random = tmp_path / "store", np.random.default_rng(0)
    write(planned(config, folder, 20), config)
    expected = everything(config, folder)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    refused = 0
    for file, whole in files.items():
        for _ in range(30):
            file.write_bytes(broken(whole, file.suffix == ".json", random))
            try:
                found = everything(config, folder)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)
            else:
                assert found == expected, file.name
        file.write_bytes(whole)
    assert refused > 30 * len(files) / 2


def broken(content: bytes, is_json: bool, random: np.random.Generator) -> bytes:
    """A file's content with a bit flipped, its end cut or, in JSON, a value replaced."""
    how = random.integers(3 if is_json else 2)
    if how == 2:
        return json.dumps(edited(json.loads(content), random)).encode()
    place = int(random.integers(len(content)))
    if how == 1:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(random.integers(8))
    return bytes(flipped)


def edited(value, random: np.random.Generator):
    """JSON with one value in it, anywhere, replaced."""
    if isinstance(value, dict | list) and value and random.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(random.integers(len(keys)))]
        value[key] = edited(value[key], random)
        return value
    return EDITS[int(random.integers(len(EDITS)))]


def everything(config: DataConfig, folder: Path) -> list:
    """What a run reads of a store, and what the teacher's pass finds there: compared as bytes."""
    longer = planned(config, folder, 40)
    assert planned(config, folder, 20).finished() == {}
    store = TeacherStore(str(folder), CODEC)
    check_origin(str(folder), store.description.head.origin, ORIGIN)
    rows = taught_rows(config, lesson(config), 20)
    paths = [store.rows_of(d.path, d.sha256).dataset for d in lesson(config).datasets]
    found = [store.read(paths[dataset], number) for dataset, number in rows.tolist()]
    return [
        *([array.tobytes() for array in one] for one in found),
        [rows.tolist() for rows in longer.shards.values()],
    ]


def test_notes_that_are_broken_are_refused_or_do_not_matter(config, tmp_path):
    folder, random = tmp_path / "store", np.random.default_rng(1)
    plan = planned(config, folder, 20)
    write(plan, config)
    (folder / "teacher.json").unlink()
    whole = plan.finished()
    for file in (folder / "targets-00001.json", folder / "targets-00001.rows"):
        content = file.read_bytes()
        for _ in range(100):
            file.write_bytes(broken(content, file.suffix == ".json", random))
            with contextlib.suppress(UserError):
                found = plan.finished()
                assert found.keys() == whole.keys()
                plan.conclude(found)
                (folder / "teacher.json").unlink()
        file.write_bytes(content)


def test_a_store_keeps_few_files_open_and_can_be_sent_to_another_process(
    config, tmp_path, monkeypatch
):
    write(planned(config, tmp_path / "store", 60, shard_rows=4), config)
    monkeypatch.setattr(storage, "_MOST_OPEN", 3)
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    rows = taught_rows(config, lesson(config), 60).tolist()
    before = open_files()
    first = [store.read(*row).tokens for row in rows]
    assert open_files() == before + 3
    sent = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as threads:
        again = [found.tokens for found in threads.map(sent.read, *zip(*rows * 3, strict=True))]
    np.testing.assert_array_equal(np.stack(again), np.stack(first * 3))
    assert open_files() == before + 6
    del store, sent
    gc.collect()
    assert open_files() == before


def open_files() -> int:
    """Descriptors of this process on targets."""
    names = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(name.endswith(".bin") and "targets-" in name for name in names)


def test_a_store_of_another_version_is_named(config, tmp_path):
    write(planned(config, tmp_path / "store", 60), config)
    sidecar = tmp_path / "store" / "teacher.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "format_version": 9}))
    with pytest.raises(UserError, match="has format version 9, this release reads 2"):
        read_description(str(tmp_path / "store"))


def test_a_store_in_a_bucket_or_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="teacher store 'gs://x/y' must be local"):
        TeacherStore("gs://x/y", CODEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="teacher store '.*file' is a file: name a folder"):
        TeacherStore(str(tmp_path / "file"), CODEC)


def test_a_shard_without_its_note_is_not_there(config, tmp_path):
    plan = planned(config, tmp_path / "store", 60)
    write(plan, config)
    for name in ("targets-00003.json", "teacher.json"):
        (tmp_path / "store" / name).unlink()
    plan = planned(config, tmp_path / "store", 60)
    assert sorted(plan.finished()) == [0, 1, 2, 4, 5]
    before = (tmp_path / "store" / "targets-00003.bin").read_bytes()
    write(plan, config, shards=(3,))
    assert (tmp_path / "store" / "targets-00003.bin").read_bytes() == before
    verify(str(tmp_path / "store"))


def lose_sidecar(store: Path) -> dict[str, bytes]:
    """What the files of a store held before its sidecar was lost."""
    held = {path.name: path.read_bytes() for path in store.iterdir()}
    (store / "teacher.json").unlink()
    return held


def test_the_passes_that_made_a_store_make_its_lost_sidecar_again(config, tmp_path):
    """In their order: another dataset, another order, a longer run; no shard is written again."""
    store = tmp_path / "store"
    one = dataclasses.replace(config, train=config.train[:1])
    passes = (one, 25), (config, 25), (dataclasses.replace(config, shuffle_seed=3), 60)
    for each, stream_rows in passes:
        write(planned(each, store, stream_rows), each)
    (store / "targets-00001.bin").unlink()  # what the first pass wrote, written again by the last
    write(planned(passes[-1][0], store, 60), passes[-1][0])
    held = lose_sidecar(store)
    with pytest.raises(UserError, match=r"targets-00000.json' was begun for another run \(data"):
        planned(passes[-1][0], store, 60).finished()
    for each, stream_rows in passes:
        plan = planned(each, store, stream_rows)
        assert plan.finished().keys() == plan.shards.keys()
        plan.conclude(plan.finished())
    assert {path.name: path.read_bytes() for path in store.iterdir()} == held


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_shards_lost_list_of_rows_is_written_again(config, tmp_path, how):
    """Of a store that is finished, once its sidecar is removed as the refusal says."""
    store = tmp_path / "store"
    write(planned(config, store, 25), config)
    held = lose_sidecar(store)
    rows = store / "targets-00001.rows"
    damage(rows, how)
    if how != "missing":
        with pytest.raises(UserError, match=r"is damaged .*: remove that file and run gemma-train"):
            planned(config, store, 25).finished()
        rows.unlink()
    plan = planned(config, store, 25)
    assert sorted(plan.finished()) == [0, 2]
    write(plan, config, shards=(1,))
    assert {path.name: path.read_bytes() for path in store.iterdir()} == held
    damage(rows, how)
    cure = "restore it, or remove it and teacher.json and repeat the commands that wrote the store$"
    with pytest.raises(UserError, match=cure):
        planned(config, store, 25)
