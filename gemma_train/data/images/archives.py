"""WebDataset archives: tar files whose members belong together by name (cat.jpg, cat.txt).

An archive is read as a stream and nothing of it is written anywhere: names are only names. Links,
devices and sparse files are not followed, and no member is read that is larger than is asked for.
"""

import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Self

UNREADABLE = (tarfile.TarError, RecursionError, OverflowError)  # besides those of any stream
_LARGEST_HEADER = 1 << 20  # bytes of a long name or of extended attributes
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)

Content = bytes | ValueError  # of a member, or why it was not read


def samples(
    stream: IO[bytes], largest: Callable[[str], int | None]
) -> Iterator[tuple[str, dict[str, Content]]]:
    """Of members that follow each other the common name, and the contents by suffix.

    A suffix is what follows the first dot of a member's name, in lower case; `largest` says how
    many bytes are taken of one, or None for those that are not wanted. Raises `ValueError`, or one
    of `UNREADABLE`, where the archive is damaged or breaks off, after the samples before.
    """
    name, found = None, {}
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        while member := archive.next():
            archive.members.clear()  # else every header stays in memory
            if member.isdir():
                continue
            key, suffix = _split(member.name)
            if key != name:
                if name is not None:
                    yield name, found
                name, found = key, {}
            most = largest(suffix)
            if most is None:
                continue
            twice = ValueError(f"has two members .{suffix}")
            found[suffix] = twice if suffix in found else _content(archive, member, most)
    if name is not None:
        yield name, found


def taken(content: Content) -> bytes:
    """A member's bytes. Raises the `ValueError` that says why it was not read."""
    if isinstance(content, ValueError):
        raise content
    return content


class _Header(tarfile.TarInfo):
    """A header that is damaged is an error, not the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the block of zeros that ends an archive
            raise ValueError(f"is no tar archive, or is damaged or cut here: {error}") from None
        if header.type in _EXTENSIONS and header.size > _LARGEST_HEADER:
            raise ValueError(f"has a header of {header.size:,} bytes: that is no archive of images")
        return header


def _split(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what follows the dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> Content:
    if not member.isreg() or member.issparse():
        return ValueError(f"member {member.name!r} is a link or no plain file: it is not followed")
    if member.size > most:
        return ValueError(
            f"member {member.name!r} has {member.size:,} bytes, at most {most:,} are taken"
        )
    content = archive.extractfile(member)
    assert content is not None
    return content.read()
