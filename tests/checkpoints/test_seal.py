"""Seals: whatever becomes of a file of a checkpoint is found, and named."""

import json

import pytest
from etils import epath

from gemma_train.checkpoints.seal import contents, damage, is_seal, seal
from tests.checkpoints.conftest import FILES


def test_a_checkpoint_as_it_was_sealed_is_whole(saved):
    assert damage(epath.Path(saved(3))) == ""


def test_every_process_seals_what_it_wrote_and_together_they_seal_all(saved):
    place = saved(3, processes=2)
    one, two = (
        {
            file["name"]
            for file in json.loads((place / f"seal-0000{n}-of-00002.json").read_text())["files"]
        }
        for n in (0, 1)
    )
    assert one | two == set(FILES)
    assert two == {name for name in FILES if "process_1" in name}
    assert not one & two
    assert damage(epath.Path(place)) == ""


@pytest.mark.parametrize("name", [name for name in FILES if name != "empty"])
@pytest.mark.parametrize("how", ["flipped", "shorter", "longer", "removed", "emptied"])
def test_what_becomes_of_any_file_is_found_and_the_file_is_named(saved, name, how):
    place = saved(3, processes=2)
    file, content = place / name, FILES[name]
    match how:
        case "flipped":
            flipped = bytearray(content)
            flipped[-1] ^= 1
            file.write_bytes(flipped)
        case "shorter":
            file.write_bytes(content[:-1])
        case "longer":
            file.write_bytes(content + b"\0")
        case "removed":
            file.unlink()
        case "emptied":
            file.write_bytes(b"")
    assert str(file) in damage(epath.Path(place))


def test_sizes_alone_are_looked_at_where_no_file_is_to_be_read(saved):
    place = saved(3)
    file = place / "state/d/aaaa"
    file.write_bytes(b"\1" * 1000)
    assert damage(epath.Path(place), slice(0)) == ""
    file.write_bytes(b"\1" * 999)
    assert "999" in damage(epath.Path(place), slice(0))


def test_processes_that_share_out_the_files_read_all_of_them(saved):
    place = saved(3)
    for name in FILES:
        if name == "empty":
            continue
        (place / name).write_bytes(bytes(b ^ 1 for b in FILES[name]))
        found = [damage(epath.Path(place), slice(k, None, 3)) for k in range(3)]
        assert sum(map(bool, found)) == 1, name
        (place / name).write_bytes(FILES[name])


def test_a_seal_that_is_missing_or_of_another_number_of_processes(saved):
    place = saved(3, processes=2)
    (place / "seal-00000-of-00002.json").unlink()
    assert "one is missing" in damage(epath.Path(place))
    seal(epath.Path(place), 0, 1)
    assert "one is missing" in damage(epath.Path(place))


def test_without_seals_nothing_is_whole(saved):
    assert "no seal" in damage(epath.Path(saved(3, sealed=False)))


def test_every_bit_flipped_in_a_seal_is_damage_or_changes_nothing(saved):
    place = saved(3, processes=2)
    file = place / "seal-00001-of-00002.json"
    content, said, harmless = file.read_bytes(), contents(epath.Path(place)), 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        if not damage(epath.Path(place)):
            harmless += 1  # such as a space that became another
            assert contents(epath.Path(place)) == said
    assert harmless < len(content)


def test_a_seal_of_another_format_version_is_damage_and_says_which(saved, folder):
    place = saved(3)
    file = place / "seal-00000-of-00001.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 3'))
    told = damage(epath.Path(place))
    assert told == f"{str(file)!r} has format version 3, this release reads 1"
    saved(2)
    heard = []
    assert folder.newest_whole(heard.append) == 2
    assert "has format version 3" in heard[0]


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a\0b", "state"])
def test_a_seal_speaks_of_files_within_alone(saved, name):
    place = saved(3)
    file = place / "seal-00000-of-00001.json"
    told = json.loads(file.read_text())
    told["files"][0] |= {"name": name}
    file.write_text(json.dumps(told))
    assert damage(epath.Path(place))


def test_what_another_process_is_still_writing_is_in_no_seal(saved):
    place = saved(3, sealed=False)
    (place / ".seal-00001-of-00002.json.abcd.writing").write_bytes(b"{")
    seal(epath.Path(place), 0, 2)
    assert all(not is_seal(file.name) for file in _sealed(place))


def _sealed(place):
    (place / "seal-00001-of-00002.json").write_text(
        json.dumps({"format_version": 1, "process": 1, "processes": 2, "files": []})
    )
    return contents(epath.Path(place))
