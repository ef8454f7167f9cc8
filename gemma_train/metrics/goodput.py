"""Goodput: the share of a run's time that brought it forward, and what took the rest.

A run has lives: processes that were started one after the other, each from a checkpoint. A ledger
keeps what the time of a life went to, in categories that sum to its wall time; `metrics.jsonl`
keeps its accounts, lines of kind "goodput", each the whole life so far. Of a killed life there is
the last account, and what its steps after that say of themselves. Work that a later life does
again was lost: it is counted when its lines are dropped.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, get_args

from gemma_train.metrics.wording import duration

Category = Literal[
    "init",  # from the start of the process to its first step
    "compile",  # the first step, which compiles
    "step",
    "data_wait",
    "checkpoint",  # that the loop is held up by one
    "evaluation",
    "restore",  # going back to a checkpoint within a life
    "other",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)
KIND = "goodput"
LEAST_SHARE = 0.0005  # of what is told: 0.1 % after rounding
LOST = "lost_work_seconds"  # of the steps of a life, those that were done again

_IMPORTED = time.perf_counter()

Line = Mapping[str, Any]


class Ledger:
    """What a life's time goes to: one category at any moment, `init` at first.

    `began` is the reading of `now` at which the life began.
    """

    def __init__(self, now: Callable[[], float], began: float) -> None:
        self._now = now
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._doing: Category = "init"
        self._since = began

    def turn(self, category: Category) -> Category:
        """From now on time goes to `category`; returns where it went so far."""
        now, before = self._now(), self._doing
        self._seconds[before] += now - self._since
        self._doing, self._since = category, now
        return before

    @contextmanager
    def within(self, category: Category) -> Iterator[None]:
        """What happens inside goes to `category`, and afterwards time goes where it went before."""
        before = self.turn(category)
        try:
            yield
        finally:
            self.turn(before)

    @property
    def seconds(self) -> dict[Category, float]:
        """Of each category until now; their sum is the life's wall time."""
        self.turn(self._doing)
        return dict(self._seconds)


def account(seconds: Mapping[Category, float], *, life: int, from_step: int, lost: float) -> Line:
    """The scalars of an account: what life number `life`, begun at `from_step`, took until now."""
    told = {name(category): value for category, value in seconds.items()}
    began = time.time() - sum(seconds.values())
    return {"life": life, "from_step": from_step, "began": began, **told, LOST: lost}


def name(category: Category) -> str:
    return f"{category}_seconds"


def lives(lines: Sequence[Line]) -> dict[int, Line]:
    """The last account of each life that has one."""
    return {line["life"]: line for line in lines if _is_account(line)}


def gone_back(lines: Sequence[Line], step: int) -> list[Line]:
    """The lines of a run that goes on from `step`.

    What it wrote after that step is dropped, but not the time that this took: each life's last
    account stays, the newest one with what followed it, and with the dropped steps as lost work.
    """
    kept = [line for line in lines if line["step"] <= step and not _is_account(line)]
    accounts = [{**line, "step": min(line["step"], step)} for line in lives(lines).values()]
    if accounts:
        last = max(at for at, line in enumerate(lines) if _is_account(line))
        dropped = [line for line in lines if line["step"] > step]
        accounts[-1] |= _closed(accounts[-1], lines[last + 1 :], dropped)
        accounts[-1]["time"] = lines[-1]["time"]
    return [*kept, *accounts]


def _is_account(line: Line) -> bool:
    return line["kind"] == KIND and isinstance(line.get("life"), int)


def _closed(last: Line, after: Sequence[Line], dropped: Sequence[Line]) -> Line:
    """What changes in a life's last account by the lines after it, and by those dropped."""
    changed = {name(category): _number(last, name(category)) for category in CATEGORIES}
    for line in after:
        for category, seconds in _spent(line).items():
            changed[name(category)] += seconds
    lost = sum(_spent(line)["step"] for line in dropped)
    return {**changed, LOST: _number(last, LOST) + lost}


def _spent(line: Line) -> dict[Category, float]:
    """Where the seconds of a step's line went."""
    if line["kind"] != "train":
        return {"compile": 0.0, "step": 0.0, "data_wait": 0.0}
    waited = _number(line, "data_wait_seconds")
    first, each = _number(line, "first_step_seconds"), _number(line, "seconds_per_step")
    return {
        "compile": max(first - waited, 0.0),
        "step": max(each - waited, 0.0),
        "data_wait": waited,
    }


def _totals(accounts: Sequence[Line]) -> dict[Category, float]:
    return {one: sum(_number(line, name(one)) for line in accounts) for one in CATEGORIES}


def _number(line: Line, field: str) -> float:
    value = line.get(field)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """What the time of a run went to, over all lives that left an account."""

    parts: dict[str, float]  # seconds by what they are called, none of them zero; "training" first
    lives: int
    between: float  # seconds between lives, which are nobody's: no part of the wall time

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Self | None:
        """Of a run's lines; None where they hold no account."""
        found = list(lives(lines).values())
        if not found:
            return None
        fresh = [line for line in found if not line.get("from_step")]
        total, beginning = _totals(found), _totals(fresh)
        lost = sum(_number(line, LOST) for line in found)
        recovery = sum(total[one] - beginning[one] for one in ("init", "compile"))
        parts = {
            "training": total["step"] - lost,
            "lost work": lost,
            "starting": beginning["init"],
            "compiling": beginning["compile"],
            "recovery": recovery + total["restore"],
            "waiting for data": total["data_wait"],
            "checkpoints": total["checkpoint"],
            "evaluation": total["evaluation"],
            "other": total["other"],
        }
        return cls(
            parts={part: seconds for part, seconds in parts.items() if seconds > 0},
            lives=len(found),
            between=sum(
                max(0.0, _number(later, "began") - earlier["time"])
                for earlier, later in pairwise(found)
            ),
        )

    @property
    def wall(self) -> float:
        """Seconds of all lives."""
        return sum(self.parts.values())

    @property
    def shares(self) -> dict[str, float]:
        """Of the wall time, each part's."""
        return {part: seconds / self.wall for part, seconds in self.parts.items()}

    @property
    def share(self) -> float:
        """The goodput, from 0 to 1: time of steps that were not done again, over wall time."""
        return self.shares.get("training", 0.0)

    @property
    def told(self) -> str:
        """In one line, the parts in falling order."""
        rest = sorted(
            ((share, part) for part, share in self.shares.items() if part != "training"),
            reverse=True,
        )
        said = ", ".join(f"{part} {percent(share)}" for share, part in rest if share >= LEAST_SHARE)
        whole = f"goodput {percent(self.share)} of {duration(self.wall)}"
        return f"{whole}: {said}{self._told_of_lives}" if said else whole + self._told_of_lives

    @property
    def _told_of_lives(self) -> str:
        if self.lives == 1:
            return ""
        return f"; {self.lives} lives, {duration(self.between)} between them"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def process_start() -> float:
    """The reading of `time.perf_counter` at which this process was started.

    By Linux's own account of it; elsewhere when this module was first imported.
    """
    try:
        words = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(words[19])  # field 22 is the start, since the boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    return time.perf_counter() - age
