"""Which checkpoint a run goes on from, and which ones may go."""

from pathlib import Path

import pytest

from gemma_train.errors import Damaged


def broken(place: Path) -> None:
    file = place / "state/d/aaaa"
    content = bytearray(file.read_bytes())
    content[500] ^= 4
    file.write_bytes(content)


def test_a_run_without_checkpoints_begins(folder):
    assert (folder.steps, folder.newest_whole(print)) == ([], None)
    assert not folder.path.exists(), "looking makes nothing"


def test_the_newest_whole_one_is_found_and_what_is_passed_over_is_told(folder, saved):
    for step in (3, 12, 100):
        saved(step)
    heard = []
    assert (folder.newest_whole(heard.append), heard) == (100, [])
    broken(folder.checkpoint(100))
    broken(folder.checkpoint(12))
    assert folder.newest_whole(heard.append) == 3
    assert ["checkpoint 100" in heard[0], "checkpoint 12" in heard[1]] == [True, True]
    assert all("state/d/aaaa" in line for line in heard)


def test_nothing_starts_over_the_heads_of_checkpoints_of_which_none_is_whole(folder, saved):
    saved(3), saved(6, sealed=False)
    broken(folder.checkpoint(3))
    with pytest.raises(Damaged, match="no whole checkpoint"):
        folder.newest_whole(print)
    folder.set_aside_after(None)
    assert folder.steps == []
    with pytest.raises(Damaged, match=r"3\.damaged"):
        folder.newest_whole(print)


def test_what_is_moved_out_of_the_way_keeps_its_contents_and_a_name_of_its_own(folder, saved):
    for _ in range(3):
        saved(3), saved(9)
        folder.set_aside_after(3)
    assert folder.steps == [3]
    assert folder.set_aside == ["9.damaged", "9.damaged-2", "9.damaged-3"]
    assert all((folder.path / name / "empty").exists() for name in folder.set_aside)


@pytest.mark.parametrize("process", [0, 1])
def test_one_that_a_process_still_writes_is_none_and_is_cleared_away(folder, saved, process):
    saved(3)
    folder.mark(6, process)
    saved(6, processes=2)
    assert folder.steps == [3]
    assert folder.unfinished == [f"6.unfinished-{process}"]
    folder.clear_unfinished()
    assert folder.steps == [3]
    assert [child.name for child in folder.path.iterdir()] == ["3"]
    folder.mark(6, process)
    saved(6)
    folder.unmark(6, process)
    assert folder.steps == [3, 6]


def test_what_orbax_has_not_committed_is_cleared_away(folder, saved):
    saved(3)
    temporary = Path(folder.path) / "6.orbax-checkpoint-tmp-7"
    (temporary / "state").mkdir(parents=True)
    folder.mark(6)
    assert folder.steps == [3]
    folder.clear_unfinished()
    assert [child.name for child in folder.path.iterdir()] == ["3"]


def test_the_newest_stay_and_a_damaged_one_is_not_counted_among_them(folder, saved):
    for step in (1, 2, 3, 4, 5):
        saved(step)
    assert folder.thin_out(3) == [1, 2]
    assert folder.steps == [3, 4, 5]
    for step in (4, 5):
        (Path(folder.checkpoint(step)) / "state/manifest.ocdbt").unlink()
    saved(6, sealed=False)
    assert folder.thin_out(1) == []
    assert folder.steps == [3, 4, 5, 6], "3 is the last that is whole"
    saved(7)
    assert folder.thin_out(1) == [3]


def test_a_removal_that_is_killed_leaves_no_checkpoint_that_seems_whole(folder, saved, monkeypatch):
    saved(3), saved(6)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("etils.epath.backend._OsPathBackend.rmtree", killed, raising=False)
        patched.setattr(type(folder.path), "rmtree", killed)
        folder.remove(3)
    assert folder.steps == [6]
    folder.clear_unfinished()
    assert folder.steps == [6]


def test_processes_agree_on_the_first_finding_of_any(folder, saved):
    saved(3), saved(6)
    broken(folder.checkpoint(6))

    def agreed(find):
        return next(filter(None, [find(slice(k, None, 2)) for k in (0, 1)]), "")

    assert folder.newest_whole(lambda line: None, agreed) == 3


def test_who_looks_on_while_a_run_replaces_its_only_checkpoint_finds_the_new_one(folder, saved):
    saved(3)
    heard = []

    def agreed(find):
        if folder.steps == [3]:
            saved(6)
            folder.remove(3)
        return find(slice(None))

    assert folder.newest_whole(heard.append, agreed) == 6
    assert not heard
