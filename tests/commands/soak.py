"""Kill -9 again and again: python -m tests.commands.soak CONFIG FOLDER WHOLE KILLS SEED.

CONFIG is a run in FOLDER, WHOLE the folder of the same run that nothing disturbed. Lives of the run
are killed at random moments, every other one within a save, until it ends; its last checkpoint must
then be WHOLE's, bit for bit, and it begins anew. So until there were KILLS kills.

A life is forked from this process, which has imported all and touched no device, and its programs
come from a cache: a life takes seconds. Prints a line a run; exit code 1 where anything differs.
"""

import os
import random
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
from tests.commands.processes import assert_same_arrays, saved_arrays

LONGEST = 120.0  # seconds that a life may take before it hangs


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


def saves_under_way(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.unfinished-*"))


def kill_at_a_random_moment(
    pid: int, folder: Path, within_save: bool, whole_life: float, dice: random.Random
) -> int:
    """Kill a life of about so many seconds, unless it ends before its moment comes: its exit code.

    Within a save that is up to 0.1 s after it began: a save takes about as long.
    """
    begun = time.monotonic()
    until = None if within_save else begun + dice.uniform(0.0, whole_life)
    while (code := ended(pid)) is None:
        now = time.monotonic()
        if until is None and saves_under_way(folder):
            until = now + dice.uniform(0.0, 0.1)
        if until is not None and now >= until:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if now - begun > LONGEST:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"a life did not end within {LONGEST} seconds")
        time.sleep(0.001)
    return code


def main(config: str, folder: Path, whole: Path, kills: int, seed: int) -> int:
    dice, done, inside, runs, log = random.Random(seed), 0, 0, 0, folder.with_suffix(".log")
    begun = time.monotonic()
    os.waitpid(life(config, log), 0)
    whole_life = time.monotonic() - begun
    last = max(int(p.name) for p in (whole / "checkpoints").iterdir() if p.name.isdigit())
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        of_run, code = 0, -signal.SIGKILL
        while code:
            wanted = done < kills
            within = done % 2 == 0
            pid = life(config, log)
            if wanted:
                code = kill_at_a_random_moment(pid, folder, within, whole_life, dice)
            else:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == -signal.SIGKILL:
                done, of_run = done + 1, of_run + 1
                inside += saves_under_way(folder)
            elif code:
                print(f"a life ended with exit code {code}: see {log}")
                return 1
        if not is_the_same(folder, whole, last, log):
            print(f"after {of_run} kills the run is another: see {log}")
            return 1
        runs += 1
        print(f"run {runs}: {of_run} kills, bit for bit ({done} of {kills})", flush=True)
    print(f"{done} kills, {inside} of them within a save; {runs} runs, all bit for bit")
    return 0


if __name__ == "__main__":
    own, place, undisturbed, number, start = sys.argv[1:]
    sys.exit(main(own, Path(place), Path(undisturbed), int(number), int(start)))
