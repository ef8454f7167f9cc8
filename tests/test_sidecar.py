"""Sidecars: what is written is read; whatever else lies there is one line."""

from dataclasses import dataclass

import numpy as np
import pytest
from etils import epath

from gemma_train import sidecar
from gemma_train.errors import UserError
from gemma_train.sidecar import Count, Name, Positive


@dataclass(frozen=True, kw_only=True)
class Part:
    rows: Count
    share: float


@dataclass(frozen=True, kw_only=True)
class Record:
    name: Name
    size: Positive
    parts: tuple[Part, ...]
    places: tuple[Count | None, ...]
    more: dict


RECORD = Record(
    name="é",
    size=1,
    parts=(Part(rows=0, share=0.1), Part(rows=1 << 62, share=1e-300)),
    places=(None, 3),
    more={"a": [1, {"b": None}]},
)


@pytest.fixture
def file(tmp_path) -> epath.Path:
    return epath.Path(tmp_path) / "record.json"


def read(file: epath.Path) -> Record:
    return sidecar.read(file, Record, 3, "mend it")


def test_what_is_written_is_read(file):
    sidecar.write(file, RECORD, 3)
    assert read(file) == RECORD


def test_another_version_is_named_whatever_else_is_there(file):
    file.write_text('{"format_version": 4, "name": 7}')
    with pytest.raises(UserError, match="has format version 4, this release reads 3: mend it"):
        read(file)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"rows": 0', '"rows": -1', r"Expected `int` >= 0 - at `\$.parts\[0\].rows`"),
        ('"rows": 0', '"rows": 0.0', r"got `float` - at `\$.parts\[0\].rows`"),
        ('"rows": 0', '"rows": false', r"got `bool` - at `\$.parts\[0\].rows`"),
        ('"rows": 0', '"raws": 0', r"missing required field `rows` - at `\$.parts\[0\]`"),
        ('"share": 0.1', '"share": NaN', "malformed"),
        ('"share": 0.1', '"share": 1e999', "out of range"),
        ('"size": 1', '"size": 0', r"Expected `int` >= 1 - at `\$.size`"),
        ('"size": 1', '"size": ' + "1" * 5000, "Integer value out of range"),
        ('"name": "é"', '"name": ""', "Expected `str` of length >= 1"),
        ('"name": "é"', '"name": null', "Expected `str`, got `null`"),
        ('"format_version": 3', '"format_version": "3"', "Expected `int`, got `str`"),
        ('"more": {', '"more": {"deep": ' + "[" * 100_000, "recursion"),
    ],
)
def test_each_field_is_held_to_its_type(file, old, new, told):
    sidecar.write(file, RECORD, 3)
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"garbled \(.*{told}.*\): mend it$") as raised:
        read(file)
    assert "\n" not in str(raised.value)


def test_bytes_at_random_are_refused_or_the_record(file):
    sidecar.write(file, RECORD, 3)
    content, random = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        broken = bytearray(content)
        for place in random.integers(len(broken), size=random.integers(1, 4)):
            broken[place] = random.integers(256)
        file.write_bytes(broken[: random.integers(1, len(broken) + 1)])
        try:
            assert isinstance(read(file), Record)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 1000


def test_one_that_is_refused_for_a_moment_is_read_and_one_that_is_not_ours_is_one_line(
    file, monkeypatch
):
    sidecar.write(file, RECORD, 3)
    errors, reads = [ConnectionError("reset")], type(file).read_bytes

    def failing(path: epath.Path) -> bytes:
        if errors:
            raise errors.pop()
        return reads(path)

    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    monkeypatch.setattr(type(file), "read_bytes", failing)
    assert read(file) == RECORD
    errors.append(PermissionError(13, "Permission denied", str(file)))
    with pytest.raises(UserError, match=r"record.json' cannot be read \(Permission denied\): let"):
        read(file)
