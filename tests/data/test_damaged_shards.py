"""Each file of a dataset cut, gone, not to be read, or changed in a bit: told by file and block."""

import builtins
import os
import pickle
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from etils import epath

from gemma_train import storage
from gemma_train.data.blocks import BLOCK
from gemma_train.data.shards import ImageSpan, TokenDataset, verify
from gemma_train.data.token_writer import TokenWriter
from gemma_train.errors import Damaged, UserError

SPAN = ImageSpan(before=1, tokens=1, after=1)
WINDOW = 500
FILES = ("bin", "offsets", "images")
PLACES = {  # in each file, which has three blocks
    "first byte": lambda size: 0,
    "end of the first block": lambda size: BLOCK - 1,
    "start of the second": lambda size: BLOCK,
    "start of the last": lambda size: size // BLOCK * BLOCK,
    "last byte": lambda size: size - 1,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory, tokenizer) -> Path:
    """A shard whose three files have three blocks each, and a small one."""
    folder = tmp_path_factory.mktemp("written") / "made"
    writer = TokenWriter(epath.Path(folder), 60_000, SPAN)
    for number in range(4_000):
        writer.append([2, 3, 0, 4, 1], [(2, sha256(b"%d" % number).digest())])
    for number in range(20_500):
        writer.append([2, *[5 + number % 500] * (number % 2), 1])
    writer.finish(tokenizer, {}, [])
    sizes = [(folder / f"tokens-00000.{suffix}").stat().st_size for suffix in FILES]
    assert [size // BLOCK for size in sizes] == [3, 2, 2]
    assert (folder / "tokens-00001.bin").exists()
    return folder


@pytest.fixture(scope="module")
def windows(written) -> list:
    return list(map(tuple, read_in_windows(TokenDataset(str(written)))))


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "made"))


def read_in_windows(dataset: TokenDataset) -> list:
    """What each window holds, as lists; the error where it is damaged."""
    found = []
    for start in range(0, len(dataset), WINDOW):
        try:
            found.append([part.tolist() for part in dataset.read(start, start + WINDOW)])
        except Damaged as error:
            found.append(error)
    return found


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", FILES)
def test_a_flipped_bit_is_told_by_file_and_block_and_other_rows_stay(
    folder, windows, suffix, place
):
    file = folder / f"tokens-00000.{suffix}"
    at = PLACES[place](file.stat().st_size)
    flip(file, at)
    found, block = read_in_windows(TokenDataset(str(folder))), at // BLOCK
    damaged = [number for number, one in enumerate(found) if isinstance(one, Damaged)]
    assert 0 < len(damaged) < len(found) * 0.75
    for number, (one, expected) in enumerate(zip(found, windows, strict=True)):
        if number not in damaged:
            assert tuple(one) == expected
            continue
        assert f"tokens-00000.{suffix}' is damaged in bytes {block * BLOCK:,} to" in str(one)
        assert f"(block {block} of " in str(one) and "\n" not in str(one)
        assert one.file == str(file)
    if suffix == "bin":
        tokens = range(block * BLOCK // 4, min((block + 1) * BLOCK, file.stat().st_size) // 4)
        assert damaged == list(range(tokens[0] // WINDOW, tokens[-1] // WINDOW + 1))


@pytest.mark.parametrize("place", [0, 9, -1])
def test_a_flipped_bit_in_the_checks_is_refused_at_opening(folder, place):
    flip(folder / "tokens-00000.checks", place)
    with pytest.raises(Damaged, match=r"tokens-00000.checks' is damaged \(its SHA-256 is"):
        TokenDataset(str(folder))


@pytest.mark.parametrize("suffix", [*FILES, "checks"])
def test_what_is_cut_or_gone_is_refused_at_opening(folder, suffix):
    file = folder / f"tokens-00001.{suffix}"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(Damaged, match=f"00001.{suffix}' has [\\d,]+ bytes, it should have"):
        TokenDataset(str(folder))
    file.unlink()
    with pytest.raises(Damaged, match=f"00001.{suffix}' is missing: remove its folder and run"):
        TokenDataset(str(folder))


@pytest.mark.parametrize("suffix", FILES)
def test_what_is_cut_or_gone_after_the_opening_is_told_when_it_is_read(folder, windows, suffix):
    file = folder / f"tokens-00000.{suffix}"
    dataset = TokenDataset(str(folder))
    os.truncate(file, BLOCK + 11)
    found = read_in_windows(dataset)
    errors = [one for one in found if isinstance(one, Damaged)]
    assert errors and all("is cut: it has no byte" in str(one) for one in errors)
    for one, expected in zip(found, windows, strict=True):
        assert isinstance(one, Damaged) or tuple(one) == expected
    another = pickle.loads(pickle.dumps(dataset))  # which opens its own
    file.unlink()
    with pytest.raises(Damaged, match=rf"{suffix}' is missing"):
        another.read(0, 10)


def test_bits_that_flip_after_the_first_pass_are_another_process_matter(folder, windows):
    """Blocks are compared once: later passes cost nothing."""
    dataset = TokenDataset(str(folder))
    first = read_in_windows(dataset)
    flip(folder / "tokens-00000.bin", 40)
    assert list(map(tuple, first)) == windows
    assert len([one for one in read_in_windows(dataset) if isinstance(one, Damaged)]) == 0
    assert any(isinstance(one, Damaged) for one in read_in_windows(TokenDataset(str(folder))))


@pytest.mark.parametrize("name", ["dataset.json", "tokens-00000.checks", "tokens-00000.bin"])
def test_a_file_that_may_not_be_read_is_one_line(folder, name, monkeypatch):
    opens = os.open, builtins.open

    def refusing(which: int):
        def refuse(file, *words, **more):
            if str(file).endswith(name):
                raise PermissionError(13, "Permission denied", str(file))
            return opens[which](file, *words, **more)

        return refuse

    monkeypatch.setattr("os.open", refusing(0))
    monkeypatch.setattr("io.open", refusing(1))
    monkeypatch.setattr("builtins.open", refusing(1))
    with pytest.raises(UserError, match=rf"{name}' cannot be read \(Permission denied\)") as raised:
        TokenDataset(str(folder)).read(0, 10)
    assert not isinstance(raised.value, Damaged) and "\n" not in str(raised.value)


def test_verification_reads_the_checks_too(folder):
    verify(str(folder))
    flip(folder / "tokens-00001.checks", 2)
    with pytest.raises(Damaged, match=r"tokens-00001.checks' is damaged"):
        verify(str(folder))


def test_datasets_that_are_read_together_share_their_open_files(written, monkeypatch):
    monkeypatch.setattr(storage, "_MOST_OPEN", 4)
    files = storage.OpenFiles()
    datasets = [TokenDataset(str(written), files) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    for dataset in datasets:
        read_in_windows(dataset)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
