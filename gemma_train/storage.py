"""Local and gs:// paths through one door (etils.epath), and writes that are whole or absent."""

import contextlib
import glob
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import time
from pathlib import PurePosixPath

from etils import epath

from gemma_train.errors import UserError, require

_SCHEME = re.compile(r"\w+:/")
_REACH_BUCKETS = ("gcsfs", "tensorflow")  # either is enough for epath
_ABANDONED_SECONDS = 3600


def path(name: str) -> epath.Path:
    """The path of a local file or folder, or of an object such as `gs://bucket/name`.

    Raises `UserError` for other places, and for a bucket where nothing is installed to reach it.
    """
    if _SCHEME.match(name):
        require(
            name.startswith("gs://"),
            f"{name!r} is neither local nor in a bucket: give a local path, or gs://BUCKET/NAME",
        )
        require(
            any(map(importlib.util.find_spec, _REACH_BUCKETS)),
            f"{name!r} is in a bucket, and gcsfs is not installed: pip install -e '.[gcs]'",
        )
    return epath.Path(name).expanduser()


def existing(name: str, what: str) -> epath.Path:
    """`path(name)`, or a `UserError` that says which `what` (a noun phrase) is missing."""
    found = path(name)
    if not found.exists():
        raise UserError(f"{what} {name!r} does not exist")
    return found


def matching(pattern: str) -> list[epath.Path]:
    """The files that match a pattern such as `corpus/**/*.jsonl` or `gs://bucket/*.parquet`.

    Sorted by name. Raises `UserError` for `**` in a bucket, which would list all of it.
    """
    if "://" not in pattern:
        names = glob.iglob(os.path.expanduser(pattern), recursive=True)
        return [epath.Path(name) for name in sorted(filter(os.path.isfile, names))]
    wild = re.search(r"/[^/]*[*?\[]", pattern)
    if wild is None:
        return [file for file in [path(pattern)] if file.exists()]
    require("**" not in pattern, f"pattern {pattern!r}: name the folders, ** is for local files")
    return sorted(path(pattern[: wild.start()]).glob(pattern[wild.start() + 1 :]))


def write_whole(target: epath.Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part.

    Of several writers of one file, on one machine or on many, the last one's content stays.
    """
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.writing"
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            temporary.write_bytes(content)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_abandoned(folder: epath.Path) -> None:
    """Remove what killed `write_whole`s left in a folder: parts that are an hour old or more.

    A younger one may be another writer's, who is about to name it.
    """
    for file in folder.glob(".*.writing"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().mtime < time.time() - _ABANDONED_SECONDS:
                file.unlink()


def sha256(file: epath.Path) -> str:
    """The hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(folder: epath.Path) -> int | None:
    """Free space below `folder` (its nearest existing parent), or None for object stores."""
    if "://" in str(folder):
        return None
    here = folder
    while not here.exists() and PurePosixPath(here) != PurePosixPath(here.parent):
        here = here.parent
    return shutil.disk_usage(here).free
