"""What differs from a store, or is broken in it, is refused by name."""

import contextlib
import dataclasses
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Layout
from gemma_train.data.lesson import lesson, taught_rows
from gemma_train.data.pipeline import batches
from gemma_train.data.rows import Rows
from gemma_train.data.shards import TokenDataset, sidecar_sha256
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import (
    check_origin,
    read_description,
    read_note,
    verify,
)
from gemma_train.errors import UserError
from gemma_train.samplers import TopK
from tests.data.teacher_store.made import (
    CODEC,
    LENGTH,
    ORIGIN,
    SAMPLER,
    damage,
    planned,
    take,
    write,
)


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
        ("images_per_row", 8, r"data\.images\.per_row None there, 8 here"),
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
    row = Layout(length=LENGTH, candidates=SAMPLER.candidates).padding(1).row(0)
    Rows(TokenDataset(path), LENGTH).fill(number, row)
    was = int(row.tokens[5])
    row.tokens[5] ^= 1
    message = (
        f"row {number:,} of dataset '{path}' has token {was ^ 1} at position 5, teacher store "
        f".* was made with {was}"
    )
    store = TeacherStore(str(tmp_path / "store"), CODEC)
    with pytest.raises(UserError, match=message):
        store.rows_of(path, sidecar_sha256(path)).fill(number, row)


def test_another_dataset_is_refused(config, tmp_path, write_dataset, made_documents):
    write(planned(config, tmp_path / "store", 60), config)
    other = write_dataset(tmp_path / "other", made_documents(9, count=60))
    config = dataclasses.replace(config, train=(config.train[0], TokenSource(path=other)))
    with pytest.raises(UserError, match=r"was made from .*one.*two.*, not from .*other.* \("):
        take(config, 1, tmp_path / "store")


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


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 4}', "null", "\x00"])
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
    accepted = field == "tokens" and value == 5
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


@pytest.mark.parametrize(("dataset", "message"), [(2**40, "does not say where"), (2, "dataset 2")])
def test_rows_of_a_dataset_that_is_none_are_refused(config, tmp_path, dataset, message):
    """All checksums right: nothing is allocated for what an entry says."""
    folder = tmp_path / "store"
    plan = planned(config, folder, 10)
    write(plan, config)
    file, note = folder / "targets-00000.rows", folder / "targets-00000.json"
    numbers = np.fromfile(file, "<i8").reshape(-1, 3)
    numbers[:, 0] = dataset
    file.write_bytes(numbers.tobytes())
    content = json.loads(note.read_text())
    content["shard"]["rows_sha256"] = sha256(numbers.tobytes()).hexdigest()
    note.write_text(json.dumps(content))
    shard = read_note(str(folder), 0).shard
    with pytest.raises(UserError, match=message):
        plan.conclude(dict.fromkeys(plan.shards, shard))


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


def test_a_store_of_another_version_is_named(config, tmp_path):
    write(planned(config, tmp_path / "store", 60), config)
    sidecar = tmp_path / "store" / "teacher.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "format_version": 9}))
    with pytest.raises(UserError, match="has format version 9, this release reads 4"):
        read_description(str(tmp_path / "store"))


def test_a_store_in_a_bucket_or_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="teacher store 'gs://x/y' must be local"):
        TeacherStore("gs://x/y", CODEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="teacher store '.*file' is a file: name a folder"):
        TeacherStore(str(tmp_path / "file"), CODEC)
