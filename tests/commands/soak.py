"""Kill -9 again and again: python -m tests.commands.soak CONFIG FOLDER WHOLE KILLS SEED.

CONFIG is a run in FOLDER, WHOLE the folder of the same run that nothing disturbed. Lives of the run
are killed at random moments, every other one within a save, until it ends. Each must go on from the
newest checkpoint that was finished when it began, and the last one must be WHOLE's, bit for bit;
then the run begins anew. So until there were KILLS kills; of many, a third must fall within a save,
and a third leave a checkpoint to go on from.

A life is forked from this process, which has imported all and touched no device, and its programs
come from a cache: a life takes seconds. Prints a line a run; exit code 1 where anything differs.
"""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gemma_train.commands import (
    command_line,
    train,  # noqa: F401  imported ahead of the forks
)
from tests.commands.processes import assert_same_arrays, checkpoints_of, saved_arrays

LONGEST = 120.0  # seconds that a life may take before it hangs
GOING_ON = re.compile(r"^going on from step ([\d,]+)$", re.MULTILINE)
MANY = 20  # kills of which a share can be told


def forked(work: Callable[[], int], log: Path) -> int:
    """Fork a process that ends with the code that `work` gives; its number.

    Whatever wakes a device, comparing arrays too, is for such processes: this one must stay fit to
    be forked.
    """
    if pid := os.fork():
        return pid
    with open(log, "ab", buffering=0) as screen:
        os.dup2(screen.fileno(), 1)
        os.dup2(screen.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # a kill loses no word
    code = 1
    try:
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def life(config: str, log: Path) -> int:
    """Fork a life of the run."""
    return forked(lambda: command_line.run(["train", config]), log)


def is_the_same(folder: Path, whole: Path, step: int, log: Path) -> bool:
    """Whether two runs saved the same after a step, bit for bit."""

    def compare() -> int:
        assert_same_arrays(saved_arrays(folder, step), saved_arrays(whole, step))
        return 0

    return os.waitstatus_to_exitcode(os.waitpid(forked(compare, log), 0)[1]) == 0


def ended(pid: int) -> int | None:
    """The exit code of a process, negative for a signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def newest(folder: Path) -> int:
    """The step of the newest finished checkpoint; 0 where there is none."""
    return max(checkpoints_of(folder), default=0)


def is_saving(folder: Path, since: float, past: int = 0) -> bool:
    """Whether a save of a step past this one has begun since then, and is under way.

    Removals mark checkpoints that are not the newest.
    """
    marks = (folder / "checkpoints").glob("*.unfinished-*")
    steps = {int(mark.name.partition(".")[0]) for mark in marks if written(mark) >= since}
    return any(step > max(newest(folder), past) for step in steps)


def written(mark: Path) -> float:
    try:
        return mark.stat().st_mtime
    except FileNotFoundError:  # it has just gone
        return 0.0


def fault(words: str, before: int, code: int) -> str:
    """What is wrong with how a life began over checkpoints up to a step; "" where all is well."""
    said = [int(step.replace(",", "")) for step in GOING_ON.findall(words)]
    if said:
        return "" if said == [before] else f"checkpoint {before} was there, and it said {said}"
    begins = bool(re.search(r"^step [\d,]+/", words, re.MULTILINE))  # else it was killed too early
    ended = code == 0 and "is finished" not in words
    return f"checkpoint {before} was lost" if before and (begins or ended) else ""


def kill_at_a_random_moment(
    pid: int, folder: Path, past: int | None, whole_life: float, dice: random.Random
) -> int:
    """Kill a life of about so many seconds, unless it ends before its moment comes: its exit code.

    `past` a step is within the next save, up to 0.1 s after it began: a save takes about as long.
    """
    begun, since = time.monotonic(), time.time()
    until = begun + dice.uniform(0.0, whole_life) if past is None else None
    while (code := ended(pid)) is None:
        now = time.monotonic()
        if past is not None and until is None and is_saving(folder, since, past):
            until = now + dice.uniform(0.0, 0.1)
        if until is not None and now >= until:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if now - begun > LONGEST:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"a life did not end within {LONGEST} seconds")
        time.sleep(0.001)
    return code


def one_run(folder: Path, kill: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Lives until one ends by itself: how many were killed, and what is wrong."""
    kills, before = 0, 0
    while True:
        code, words = kill()
        if found := fault(words, before, code):
            return kills, found
        if code != -signal.SIGKILL:
            return kills, f"a life ended with exit code {code}" if code else ""
        kills, after = kills + 1, newest(folder)
        if after < before:
            return kills, f"checkpoint {before} is gone"
        before = after


def main(config: str, folder: Path, whole: Path, kills: int, seed: int) -> int:
    dice, log = random.Random(seed), folder.with_suffix(".log")
    done = inside = left = runs = 0
    whole_life = 0.0
    for _ in range(2):  # the first one compiles
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        os.waitpid(life(config, log), 0)
        whole_life = time.monotonic() - begun
    last = newest(whole)

    def killed() -> tuple[int, str]:
        """A life, killed while there are kills left: its exit code and words."""
        nonlocal done, inside, left
        said, since = log.stat().st_size, time.time()
        save = dice.randrange(min(newest(folder), last - 1), last)
        pid = life(config, log)
        if done < kills:
            past = save if done % 2 == 0 else None
            code = kill_at_a_random_moment(pid, folder, past, whole_life, dice)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == -signal.SIGKILL:
            done += 1
            inside += is_saving(folder, since)
            left += newest(folder) > 0
        return code, log.read_bytes()[said:].decode(errors="replace")

    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        of_run, found = one_run(folder, killed)
        if not found and not is_the_same(folder, whole, last, log):
            found = "the run is another"
        if found:
            print(f"after {of_run} kills: {found}; see {log}")
            return 1
        runs += 1
        print(f"run {runs}: {of_run} kills, bit for bit ({done} of {kills})", flush=True)
    print(
        f"{done} kills, {inside} of them within a save, {left} over a checkpoint; "
        f"{runs} runs, all bit for bit"
    )
    return int(done >= MANY and 3 * min(inside, left) < done)


if __name__ == "__main__":
    own, place, undisturbed, number, start = sys.argv[1:]
    sys.exit(main(own, Path(place), Path(undisturbed), int(number), int(start)))
