"""Damage to the files of a sample: one to three hurts, all drawn from one generator.

A file is hurt as bytes, or as what it is: JSON, lines of it, a Python record, safetensors, gzip,
PNG; or it is gone, empty, a folder, another file of the sample, or there by another name as well.
"""

import gzip
import json
import struct
import zlib
from functools import cache
from random import Random

from gemma_train.contents import NO_JSON
from tests.fuzz import damage_bytes, damage_json, damage_python
from tests.fuzz.reader import Files

_MOST_HURTS = 3
_LARGEST_SAMPLE = 1 << 20  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"


def damaged(sample: Files, random: Random) -> Files:
    """The files with something wrong about them; those that are whole are the same objects."""
    files = dict(sample)
    for _ in range(random.choice((1, 1, 1, 1, 2, _MOST_HURTS))):
        name = random.choice(sorted(sample))
        if random.random() < 0.08:
            _misplace(name, files, random)
        elif content := files.get(name):
            files[name] = _hurt(name, content, random)
    return files


def _misplace(name: str, files: Files, random: Random) -> None:
    match random.choice(("gone", "empty", "folder", "swapped", "copied")):
        case "gone":
            files.pop(name, None)
        case "empty":
            files[name] = b""
        case "folder":
            files[name] = None
        case "copied" if name in files:
            folder, slash, file = name.rpartition("/")
            stem, dot, suffix = file.partition(".")
            other = f"{stem[:-1]}{random.choice('x9 -\u00fc')}"
            files[f"{folder}{slash}{other}{dot}{suffix}"] = files[name]
        case "swapped" if name in files:
            other = random.choice(sorted(files))
            files[name], files[other] = files[other], files[name]


def _hurt(name: str, content: bytes, random: Random) -> bytes:
    """A file's bytes, hurt as what they are or, as often, as bytes alone."""
    if random.random() < 0.5:
        return damage_bytes.hurt(content, random)
    try:
        return _hurt_within(name, content, random)
    except (*NO_JSON, struct.error, OSError, EOFError, zlib.error):  # hurt before
        return damage_bytes.hurt(content, random)


def _hurt_within(name: str, content: bytes, random: Random) -> bytes:
    if content.startswith(_PNG):
        return _sealed_png(damage_bytes.hurt(content, random))
    match name.rpartition(".")[2]:
        case "gz" if random.random() < 0.05:
            return content + _bomb()
        case "gz" if len(content) < _LARGEST_SAMPLE:  # else it is a bomb already
            inner = _hurt(name.removesuffix(".gz"), gzip.decompress(content), random)
            return gzip.compress(inner, mtime=0)
        case "py":
            return damage_python.hurt(content, random)
        case "jsonl":
            return damage_json.hurt_line(content, random)
        case "safetensors":
            return _hurt_header(content, random)
    if content.lstrip()[:1] in (b"{", b"["):
        return damage_json.hurt(content, random)
    return damage_bytes.hurt(content, random)


@cache
def _bomb() -> bytes:
    """A megabyte and a half of gzip that holds a gigabyte and a half of one line."""
    return gzip.compress(b"x" * (1 << 24), mtime=0) * 96


def _hurt_header(content: bytes, random: Random) -> bytes:
    """A safetensors file whose list of contents is of the length that it claims."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.dumps(json.loads(content[8 : 8 + length])).encode()
    header = damage_json.hurt(header, random)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _sealed_png(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that they should."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        body = content[place + 4 : place + 8 + length]
        parts += [content[place : place + 4], body, struct.pack(">I", zlib.crc32(body))]
        place += 12 + length
    return b"".join([*parts, content[place:]])
