"""Stores that several write, that are added to, and that lost something."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gemma_train.data.lesson import missing_rows
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.data.teacher_store.shards import (
    verify,
)
from gemma_train.errors import UserError
from tests.data.teacher_store.made import (
    CODEC,
    damage,
    planned,
    take,
    write,
)


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
