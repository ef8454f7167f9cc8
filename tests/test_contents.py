"""What small files hold, or in one line what is there instead."""

import json

import pytest
from etils import epath

from gemma_train.contents import read_object, read_text
from gemma_train.errors import Damaged, UserError, one_line
from gemma_train.storage import read_bytes

CURE = "put it back"


@pytest.fixture
def file(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "some.json")


def test_what_was_written_is_read(file):
    file.write_text('{"a": "\u00fc"}')
    assert read_bytes(file, CURE) == '{"a": "\u00fc"}'.encode()
    assert read_text(file, CURE) == '{"a": "\u00fc"}'
    assert read_object(file, CURE) == {"a": "\u00fc"}


@pytest.mark.parametrize("read", [read_bytes, read_text, read_object])
def test_what_is_no_file_is_told_with_its_cure(file, read):
    with pytest.raises(Damaged, match=r"some.json' is missing: put it back"):
        read(file, CURE)
    file.mkdir()
    with pytest.raises(Damaged, match=r"some.json' is a folder, not a file: put it back"):
        read(file, CURE)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": \xff}', r"is no text of UTF-8 \(byte 6\)"),
        (b'{"a": ', r"is not JSON \(Expecting value"),
        (b"[" * 100_000, r"is not JSON \(maximum recursion depth"),
        (b"[1]", "holds no JSON object, but a list"),
    ],
)
def test_what_is_no_object_is_told_with_its_cure(file, content, line):
    file.write_bytes(content)
    with pytest.raises(Damaged, match=f"{line}.*: put it back"):
        read_object(file, CURE)


def test_an_integer_of_more_than_64_bits_is_a_float(file):
    file.write_text(json.dumps({"a": 2**62 - 1, "b": 10**30}) + " " * 5)
    assert read_object(file, CURE) == {"a": 2**62 - 1, "b": 1e30}
    file.write_text('{"a": ' + "9" * 5_000 + "}")
    assert read_object(file, CURE) == {"a": float("inf")}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("plain: \u00fc \u6f22", "plain: \u00fc \u6f22"),
        ("one\ntwo\r\nthree", "one two  three"),
        ("\x1b[2J\x00\ud800\u2028", r"\x1b[2J\x00\ud800\u2028"),
        (
            "x" * 1_000 + "left out" + "y" * 1_000,
            f"{'x' * 1000} [... 8 characters ...] {'y' * 1000}",
        ),
    ],
)
def test_a_message_is_one_line_that_can_be_printed(told, line):
    assert str(UserError(told)) == one_line(told) == line
