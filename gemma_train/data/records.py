"""Records out of streams of bytes, none larger than any document: a packed one may be of any size.

A megabyte of gzip can hold a gigabyte; what is longer than this is no text that anybody wrote.
"""

from collections.abc import Iterator
from typing import IO

LARGEST = 1 << 28  # bytes of a line, and of a packed text


def read_at_most(stream: IO[bytes], largest: int = LARGEST) -> bytes:
    """All of a stream. Raises `ValueError` where that is more than a record may be."""
    content = stream.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"has more than {largest:,} bytes when it is unpacked")
    return content


def lines(stream: IO[bytes], largest: int = LARGEST) -> Iterator[bytes]:
    """The lines of a stream. Raises `ValueError` at one that is longer than a record may be."""
    while line := stream.readline(largest + 1):
        if len(line) > largest:
            raise ValueError(f"has a line of more than {largest:,} bytes")
        yield line
