"""Scalars of a run: `metrics.jsonl` (the truth) and, if asked, TensorBoard.

Values are read one step late: `record` of step n writes step n - 1, whose numbers the device has
finished by then, so that the host never waits for the step it has just sent.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec
from etils import epath

from gemma_train import storage
from gemma_train.errors import UserError
from gemma_train.metrics import goodput
from gemma_train.run_files import METRICS, TENSORBOARD
from gemma_train.storage import read_bytes

# Object stores cannot append: there the file is rewritten whole, at most this often.
REWRITE_SECONDS = 60.0
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

_log = logging.getLogger(__name__)

Kind = Literal["train", "evaluation", "event", "goodput"]
_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_LINES = msgspec.json.Decoder(dict[str, bool | _Integer | float | str])


class _Always(msgspec.Struct):
    """What every line has."""

    step: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    time: Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # seconds since 1970, for 3,000 years
    kind: str


class Recorder:
    """Appends a run's scalars to `<folder>/metrics.jsonl` and `<folder>/tensorboard`.

    Made by one process of a run. `start_step` is the last step that the run may build on: 0 begins
    an empty file, n keeps the lines up to step n and drops those of the life that was killed.
    `accounts` is the last line of kind "goodput" of each life so far.
    """

    def __init__(self, folder: str | epath.Path, start_step: int, tensorboard: bool) -> None:
        run = storage.path(str(folder))
        run.mkdir(parents=True, exist_ok=True)
        self._run, self._tensorboard = run, tensorboard
        self._pending: dict[str, Any] = {}
        self._begin([] if start_step == 0 else _lines(run), start_step)

    def _begin(self, lines: list[dict[str, Any]], step: int) -> None:
        """Go on from a step with what these lines say up to it."""
        kept = goodput.gone_back(lines, step)
        self.accounts = list(goodput.lives(kept).values())
        self._file = _open(self._run / METRICS, "".join(map(_encode, kept)))
        # TensorBoard hides steps >= purge_step, and keeps the event files of earlier lives.
        purge_step = step + 1 if step or lines else 0
        board = self._run / TENSORBOARD
        self._board = _open_tensorboard(board, purge_step) if self._tensorboard else None

    def go_back(self, step: int) -> None:
        """Go on from an earlier `step`: later lines are dropped, as at a resumption from it."""
        self.close()
        self._begin(_lines(self._run), step)

    def record(self, step: int, scalars: Mapping[str, Any], kind: Kind = "train") -> dict[str, Any]:
        """Keep the scalars of `step` pending and write those of the previous call.

        Values are numbers, texts, or arrays of shape () that a device may still be computing.
        Returns the line just written, as plain numbers: `{}` at the first call and after `flush`.
        """
        for value in scalars.values():
            if hasattr(value, "copy_to_host_async"):
                value.copy_to_host_async()  # starts the transfer, so that reading finds it done
        written = self.write_pending()
        self._pending = {"step": int(step), "time": time.time(), "kind": kind, **scalars}
        return written

    def flush(self) -> dict[str, Any]:
        """Write what is pending, waiting for the device; as before an evaluation or a checkpoint.

        Returns the line written, or `{}`.
        """
        written = self.write_pending()
        self._file.flush()
        if self._board is not None:
            self._board.flush()
        return written

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write_pending(self) -> dict[str, Any]:
        """Write what is pending; unlike `flush`, into an object store only when that is due."""
        line = {name: _plain(value) for name, value in self._pending.items()}
        self._pending = {}
        if not line:
            return line
        self._file.write(_encode(line))
        if self._board is not None:
            for name, value in line.items():
                if name not in ("step", "time") and not isinstance(value, str):
                    tag = f"{line['kind']}/{name}"
                    self._board.add_scalar(tag, value, line["step"], line["time"])
        return line


def read(folder: str | epath.Path) -> list[dict[str, Any]]:
    """The lines of `<folder>/metrics.jsonl` in order, non-finite values as floats.

    A half-written last line (kill -9) is dropped. Raises `UserError` if the file is missing, or
    naming file and line for anything else that is not a record.
    """
    file = storage.path(str(folder)) / METRICS
    if not file.exists():
        raise UserError(f"{folder} holds no {METRICS}: name the folder of a run that has started")
    *whole, rest = read_bytes(file, "name the folder of a run").split(b"\n")
    lines = [_decode(line, f"{file} line {number}") for number, line in enumerate(whole, 1)]
    try:
        # Nothing, half a line, or a whole one that lost only its line end.
        return [*lines, _decode(rest, "")] if rest else lines
    except UserError:
        return lines


def _lines(run: epath.Path) -> list[dict[str, Any]]:
    return read(run) if (run / METRICS).exists() else []


def _plain(value: Any) -> int | float | str:
    return value if isinstance(value, int | str) else float(value)


def _encode(line: dict[str, Any]) -> str:
    # JSON has no NaN and no infinity: they are written as the texts "nan", "inf" and "-inf".
    safe = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(safe, allow_nan=False) + "\n"


def _decode(text: bytes, place: str) -> dict[str, Any]:
    try:
        line = _LINES.decode(text)
        msgspec.convert(line, _Always)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = text[:40].decode(errors="replace")
        raise UserError(
            f"{place} is not a record of metrics: {found!r}; delete that line"
        ) from None
    return {
        name: NON_FINITE.get(value, value) if isinstance(value, str) else value
        for name, value in line.items()
    }


class _File(Protocol):
    """A text file that grows by whole lines."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _open(file: epath.Path, text: str) -> _File:
    return _ObjectFile(file, text) if "://" in str(file) else _LocalFile(file, text)


class _LocalFile:
    """Appends, handing every line to the system at once: kill -9 loses none that was written.

    What a full disk does not take is kept, and written when there is room: no run ends for it.
    """

    def __init__(self, file: epath.Path, text: str) -> None:
        storage.write_whole(file, text)
        self._name, self._waiting, self._told = str(file), b"", False
        self._stream = open(file, "ab", buffering=0)  # noqa: SIM115  closed by `close`

    def write(self, text: str) -> None:
        self._waiting += text.encode()
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._stream.write(self._waiting) :]
        except OSError as error:
            if not self._told:
                _log.warning("%s: %s; its lines are kept until there is room", self._name, error)
            self._told = True

    def close(self) -> None:
        self.flush()
        self._stream.close()


class _ObjectFile:
    """Holds the text and rewrites the object whole, at most every `REWRITE_SECONDS`."""

    def __init__(self, file: epath.Path, text: str) -> None:
        self._file, self._texts = file, [text]
        storage.write_whole(file, text)
        self._written = time.monotonic()

    def write(self, text: str) -> None:
        self._texts.append(text)
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._written = time.monotonic()
        try:
            storage.write_whole(self._file, "".join(self._texts))
        except Exception as error:  # of the bucket's library, after its own tries
            _log.warning("%s: %s; its lines are kept until it can be written", self._file, error)

    close = flush


def _open_tensorboard(folder: epath.Path, purge_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard=True needs tensorboardX: pip install tensorboardX, or set it to False"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)
