"""What a run reads of a checkpoint beside its state: as it was saved, or one clear line."""

from dataclasses import replace

import pytest
from etils import epath
from jax.errors import JaxRuntimeError

from gemma_train.config import EXAMPLE, record
from gemma_train.errors import Damaged, Stalled
from gemma_train.training.checkpoint import Kept, config_changes, kept_in, read
from gemma_train.training.position import Position

TOLD = {
    "position": {"next_row": 12},
    "config": "config = RunConfig()",
    "digest": "0f",
    "versions": {"jax": "0.12.0"},
}


def test_what_was_kept_is_read_and_nothing_else():
    kept = Kept(**{**TOLD, "position": Position(next_row=12)})
    assert kept_in({**TOLD, "places": "none of its business"}) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"position": None},
        {"position": {"next_row": "12"}},
        {"position": {"next_row": -1}},
        {"position": {"\ud800": 1}},
        {"config": None},
        {"digest": 15},
        {"versions": ["jax"]},
        {"versions": {"jax": 12}},
    ],
    ids=str,
)
def test_what_is_garbled_is_one_clear_line(change):
    with pytest.raises(Damaged, match="what is beside its state is garbled"):
        kept_in({**TOLD, **change})


@pytest.mark.parametrize("left_out", TOLD)
def test_so_it_is_where_something_is_not_there(left_out):
    with pytest.raises(Damaged, match=f"`{left_out}`"):
        kept_in({name: value for name, value in TOLD.items() if name != left_out})


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (TimeoutError(110, "no answer"), Stalled, "cannot be read now: .*no answer"),
        (ValueError("UNAVAILABLE: the bucket"), Stalled, "cannot be read now: UNAVAILABLE: the"),
        (ValueError("DATA_LOSS: a chunk"), Damaged, "cannot be read: DATA_LOSS: a chunk; if it is"),
        (KeyError("b"), Damaged, "cannot be read: 'b'; if it is damaged, move that folder away"),
        (MemoryError("1 TiB"), Damaged, "cannot be read: 1 TiB; if it is damaged"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: HBM"), JaxRuntimeError, "RESOURCE_EXHAUSTED: HBM"),
    ],
    ids=repr,
)
def test_what_stands_in_the_way_of_reading_is_told_from_damage(
    tmp_path, monkeypatch, error, kind, told
):
    def fails(*_):
        raise error

    monkeypatch.setattr("gemma_train.conversion.orbax_arrays.ocp.metadata", fails)
    with pytest.raises(kind, match=told) as raised:
        read(epath.Path(tmp_path), {})
    assert type(raised.value) is kind


def test_a_config_of_another_version_is_another_one_and_no_dead_end():
    there = record(EXAMPLE)
    assert config_changes(there, EXAMPLE) == ()
    assert config_changes(there, replace(EXAMPLE, steps=77)) == (
        f"accepted: steps was {EXAMPLE.steps}, is 77",
    )
    for text in (there.replace("steps=", "steppes="), "config = RunConfig(", ""):
        (told,) = config_changes(text, EXAMPLE)
        assert told.startswith("saved with a config of another version: ")
