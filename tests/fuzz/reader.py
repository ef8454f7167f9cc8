"""What a reader of files is to the fuzzing: how a whole sample is made, and how it is read."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Content = bytes | None  # of a file; None is a folder where the file should be
Files = dict[str, Content]  # by their paths in a sample's folder


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader of files: whatever they hold, it reads them, or raises `UserError` in one line."""

    name: str
    make: Callable[[Path], object]  # writes a whole sample into an empty folder, the same each time
    read: Callable[[Path], object]  # opens what is in the folder, and reads all of it
    cost: int = 1  # it gets so many times fewer cases than others, for each takes so much longer
    seal: Callable[[Files], Files] = (
        dict  # makes checksums agree with the damage, so that it is met
    )


def files_of(folder: Path) -> Files:
    """What a folder holds."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def put(files: Files, folder: Path, before: Files) -> None:
    """Turn a folder that holds `before` into one that holds `files`."""
    for name in before.keys() | files.keys():
        if name in before and name in files and before[name] is files[name]:
            continue
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:  # not written over: somebody may have the old file in memory
            place.unlink(missing_ok=True)
        if name in files:
            content = files[name]
            if content is None:
                place.mkdir(parents=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
