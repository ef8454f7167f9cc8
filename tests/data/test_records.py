"""Records of any length are refused before they fill the memory."""

import gzip
import io

import pytest

from gemma_train.data.records import lines, read_at_most


def test_lines_are_those_of_the_stream():
    text = b"one\n\ntwo\n" + b"x" * 5
    assert list(lines(io.BytesIO(text), 5)) == io.BytesIO(text).readlines()


def test_a_line_too_long_ends_the_stream_after_the_lines_before():
    found = lines(io.BytesIO(b"one\n" + b"x" * 6), 5)
    assert next(found) == b"one\n"
    with pytest.raises(ValueError, match="a line of more than 5 bytes"):
        next(found)


def test_a_packed_text_is_read_up_to_its_limit():
    packed = gzip.compress(b"x" * 10)
    assert read_at_most(gzip.GzipFile(fileobj=io.BytesIO(packed)), 10) == b"x" * 10
    with pytest.raises(ValueError, match="more than 9 bytes when it is unpacked"):
        read_at_most(gzip.GzipFile(fileobj=io.BytesIO(packed)), 9)
