"""Files in blocks: parts are what was written, or are told to be damaged."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from gemma_train import storage
from gemma_train.data.blocks import BLOCK, BlockChecks, CheckedFile, RisingRecords, block_count
from gemma_train.errors import Damaged, UserError

SIZE = 3 * BLOCK + 1_234
PAIR = np.dtype([("place", "<i8"), ("rest", "V32")])  # 40 bytes, which no block is a multiple of


def checks_of(content: bytes) -> bytes:
    found = BlockChecks()
    found.update(content)
    return found.digest()


def checked(file: Path, content: bytes) -> CheckedFile:
    file.write_bytes(content)
    return CheckedFile(
        storage.OpenFiles(), str(file), size=len(content), checks=checks_of(content), cure="mend it"
    )


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SIZE])
def test_checks_are_those_of_the_blocks_however_they_are_written(content, size):
    content, found, place = content[:size], BlockChecks(), 0
    for step in np.random.default_rng(1).integers(0, 40_000, 200):
        found.update(content[place : place + step])
        place += int(step)
    expected = [zlib.crc32(content[at : at + BLOCK]) for at in range(0, size, BLOCK)]
    assert np.frombuffer(found.digest(), "<u4").tolist() == expected
    assert len(expected) == block_count(size)


def test_any_part_is_read_first_and_again(content, tmp_path):
    file = checked(tmp_path / "x", content)
    for start, stop in np.random.default_rng(2).integers(0, SIZE, (200, 2)):
        start, stop = sorted((int(start), int(stop)))
        assert file.read(start, stop) == content[start:stop]
    assert file.read(0, SIZE) == content


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 9, 3 * BLOCK, SIZE - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_by_whatever_reads_its_block_and_nothing_else(
    content, tmp_path, place, bit
):
    file, block = checked(tmp_path / "x", content), place // BLOCK
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    (tmp_path / "x").write_bytes(damaged)
    end = min((block + 1) * BLOCK, SIZE)
    message = rf"x' is damaged in bytes {block * BLOCK:,} to {end:,} \(block {block} of 4\): mend"
    for start, stop in [(block * BLOCK, block * BLOCK + 1), (end - 1, end), (0, SIZE)] * 2:
        with pytest.raises(Damaged, match=message) as raised:
            file.read(start, stop)
        assert raised.value.file == str(tmp_path / "x")
    for other in {0, 1, 2, 3} - {block}:
        part = slice(other * BLOCK, min((other + 1) * BLOCK, SIZE))
        assert file.read(part.start, part.stop) == content[part]


@pytest.mark.parametrize("is_compared", [False, True])
@pytest.mark.parametrize("size", [0, 100, 2 * BLOCK, SIZE - 1])
def test_a_file_that_was_cut_is_told_with_where_it_ends(content, tmp_path, size, is_compared):
    file = checked(tmp_path / "x", content)
    if is_compared:
        file.read(0, SIZE)
    os.truncate(tmp_path / "x", size)
    with pytest.raises(
        Damaged, match=rf"x' is cut: it has no byte {size:,} \(block {size // BLOCK}\), and"
    ):
        file.read(size // BLOCK * BLOCK, SIZE)
    if size:
        whole = (size if is_compared else size // BLOCK * BLOCK) // 2
        assert file.read(0, whole) == content[:whole]


def test_a_file_that_is_gone_is_damaged_and_one_that_is_not_ours_is_not(
    content, tmp_path, monkeypatch
):
    file = checked(tmp_path / "x", content)
    (tmp_path / "x").unlink()
    with pytest.raises(Damaged, match=r"x' is missing: mend it"):
        file.read(0, 1)

    def refuse(name: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match=r"\(Permission denied\): let this user read") as raised:
        file.read(0, 1)
    assert not isinstance(raised.value, Damaged)


@pytest.mark.parametrize(("dtype", "key"), [(np.dtype("<i8"), None), (PAIR, "place")])
def test_records_between_two_keys_are_those_of_a_search_over_all(tmp_path, dtype, key):
    random = np.random.default_rng(3)
    records = np.zeros(20_000, dtype)
    keys = np.sort(random.choice(100_000, 20_000, replace=False))
    if key:
        records[key] = keys
        records["rest"] = [random.bytes(32) for _ in keys]
    else:
        records[:] = keys
    found = RisingRecords(checked(tmp_path / "x", records.tobytes()), dtype, key)
    assert found.all().tobytes() == records.tobytes()
    bounds = [(0, 0), (0, 1), (0, 100_001), (99_999, 100_000), (int(keys[512]), int(keys[1024]))]
    bounds += [(a, a + b) for a, b in random.integers(0, 100_000, (300, 2)).tolist()]
    for first, last in bounds:
        expected = records[(first <= keys) & (keys < last)]
        assert found.between(first, last).tobytes() == expected.tobytes()


def test_there_may_be_no_records(tmp_path):
    found = RisingRecords(checked(tmp_path / "x", b""), np.dtype("<i8"))
    assert found.all().size == found.between(0, 10).size == 0


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_damaged_block_of_records_costs_what_needs_it_and_never_a_record(tmp_path, block):
    keys = np.arange(0, 60_000, 3)  # 160,000 bytes: three blocks
    file = checked(tmp_path / "x", keys.astype("<i8").tobytes())
    damaged = bytearray((tmp_path / "x").read_bytes())
    damaged[block * BLOCK + 77] ^= 1
    (tmp_path / "x").write_bytes(damaged)
    found, lost = RisingRecords(file, np.dtype("<i8")), 0
    for first in range(0, 60_000, 100):
        expected = keys[(first <= keys) & (keys < first + 100)]
        try:
            assert found.between(first, first + 100).tolist() == expected.tolist()
        except Damaged:
            lost += 1
    needing = -(-min(8_192, len(keys) - 8_192 * block) * 3 // 100)
    assert needing <= lost <= needing + 33  # one piece of 512 before it, and a border
