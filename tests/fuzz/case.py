"""One case: a sample with the damage that its number stands for, read; and what came of it."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gemma_train.errors import UserError
from tests.fuzz.damage import damaged
from tests.fuzz.reader import Files, Reader

LONGEST_MESSAGE = 4_000  # characters
WELL, REFUSED, FOUND, BEGUN, TO_DO = b"wrfb."  # of a case, a byte each


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a reader may not do."""

    reader: str
    case: int
    line: str
    told: str = ""  # the traceback
    kind: str = ""  # findings that share it are likely one

    @property
    def place(self) -> str:
        return f"{self.reader} case {self.case}"


def hurt(reader: Reader, sample: Files, *, seed: int, case: int) -> Files:
    """The damaged files of a case: of one seed and number always the same."""
    random = Random(f"{seed} {reader.name} {case}")
    files = damaged(sample, random)
    return reader.seal(files) if random.random() < 0.5 else files


def outcome(reader: Reader, folder: Path, case: int) -> int | Finding:
    """Read what lies in a folder: `WELL`, `REFUSED`, or what is wrong with the reader."""
    try:
        reader.read(folder)
    except UserError as error:
        if fault := _fault(error):
            return _finding(reader, case, fault, error)
        return REFUSED
    except BaseException as error:
        return _finding(reader, case, f"{type(error).__name__}: {error}"[:300], error)
    return WELL


def _fault(error: UserError) -> str:
    """What is wrong with a message, or with how it came about."""
    message = str(error)
    if not message.isprintable():
        return f"a message that is not one line of text: {message[:300]!r}"
    if not 0 < len(message) <= LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters: {message[:100]}"
    cause: BaseException | None = error
    while cause is not None:  # a reader that catches everything hides what it ran out of
        if isinstance(cause, MemoryError) and "to parse" not in str(cause):  # of deep nesting
            return f"out of memory, told as: {message}"
        cause = cause.__cause__ or cause.__context__
    return ""


def _finding(reader: Reader, case: int, line: str, error: BaseException) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "gemma_train" in frame.filename.split("/")] or frames
    return Finding(
        reader=reader.name,
        case=case,
        line=" ".join(line.split()).encode("ascii", "backslashreplace").decode(),
        told="".join(traceback.format_exception(error)),
        kind=f"{type(error).__name__} {ours[-1].filename}:{ours[-1].lineno}",
    )
