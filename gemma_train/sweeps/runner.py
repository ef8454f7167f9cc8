"""Runs the runs of a sweep in order, each in processes of its own, and keeps the tables current.

A crash, an abort in C++ or a kill for memory ends one run, not the sweep.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from gemma_train import storage
from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.config import read_record, record
from gemma_train.drift import differences
from gemma_train.errors import require
from gemma_train.losses.distillation import Distillation, Online, Stored
from gemma_train.metrics.wording import duration
from gemma_train.run_files import RECORD, SUMMARY, TEACHER
from gemma_train.sweeps import plot, tables
from gemma_train.sweeps.child import Interruption, last_line, run_logged
from gemma_train.sweeps.lock import Lock, alone
from gemma_train.sweeps.results import Result, State, groups, result, summary
from gemma_train.sweeps.sweep import TEACH, Run, Sweep
from gemma_train.teachers.identity import taught_by

LOG = "log.txt"
PLAIN = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not end well."""

    run: Run
    how: str  # exit code or signal
    line: str  # the last of its log
    log: Path

    @property
    def told(self) -> str:
        return f"{self.run.name}: {self.how}: {self.line or 'no word'} ({self.log})"


def commands_of(run: Run) -> list[list[str]]:
    """The commands that make a run, in order; each must end well before the next is begun.

    The last leaves summary.json in the run's folder. A store that it learns from is made ahead of
    it; of one that is whole already nothing is made again.
    """
    record_file, loss = str(_folder(run) / RECORD), run.config.loss
    learns_from_store = isinstance(loss, Distillation) and isinstance(loss.teacher, Stored)
    ahead = [[*TEACH, record_file]] if learns_from_store else []
    return [*ahead, [*run.command, record_file]]


def state_of(run: Run) -> State:
    """Whether a run is done, begun (something is saved) or to do.

    Raises `UserError` where its folder was made by another config, naming the field.
    """
    folder = _folder(run)
    done = (folder / SUMMARY).exists()
    if not done and not CheckpointFolder(run.config.folder).steps:
        return "to do"
    recorded = read_record(run.config.folder)
    found = list(differences(recorded, run.config).values())
    rows, asked = recorded.evaluation.rows, run.config.evaluation.rows
    if done and rows != asked:  # harmless for a run that goes on, not for losses side by side
        found.append(f"evaluation.rows was {rows}, is {asked}")
    require(
        not found,
        f"run {run.name!r}: folder {run.config.folder!r} was made by another config "
        f"({'; '.join(found[:3])}): choose another folder for the sweep, or remove that one",
    )
    return "done" if done else "begun"


def run_all(sweep: Sweep, chosen: Sequence[Run], console: Console) -> list[Failure]:
    """Make those of the `chosen` runs that are not done; returns those that failed.

    After every run the tables and the plot are written anew. Raises `UserError` before anything
    is begun, `KeyboardInterrupt` once the running child has saved.
    """
    with alone(sweep.folder) as lock, Interruption() as stop:
        _check_teachers(sweep.placed)
        write_results(sweep)
        left = [run for run in chosen if state_of(run) != "done"]
        failures: dict[str, Failure] = {}
        with _progress(console, len(left)) as progress:
            for number, run in enumerate(left, 1):
                began = time.monotonic()
                if not console.is_terminal:
                    console.print(f"[{number}/{len(left)}] {run.name} ...", **PLAIN)
                failure = _make(run, lock, stop, progress)
                if failure is not None and not stop.requested:
                    failures[run.name] = failure
                found = {one.run.name: one for one in write_results(sweep, failures)}[run.name]
                if found.state in ("done", "failed"):
                    end = failure.how if failure else _figure(sweep, found)
                    seconds = duration(time.monotonic() - began)
                    line = f"[{number}/{len(left)}] {run.name}: {end}, {seconds}"
                    progress.console.print(line, **PLAIN)
                progress.advance(progress.task_ids[0])
                if stop.requested:
                    raise KeyboardInterrupt
        _check_teachers(sweep.placed)
    return list(failures.values())


def write_results(sweep: Sweep, failures: dict[str, Failure] | None = None) -> list[Result]:
    """Write the tables, and the plot where there is something to draw, from what is on disk."""
    results = []
    for run in sweep.placed:
        state = state_of(run)
        failed = run.name in (failures or {}) and state != "done"
        results.append(result(run, "failed" if failed else state, sweep.metric))
    found = groups(results, sweep.baseline)
    folder = storage.path(sweep.folder)
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_whole(folder / "results.csv", tables.runs_csv(sweep, results))
    storage.write_whole(folder / "groups.csv", tables.groups_csv(sweep, found))
    storage.write_whole(folder / "results.md", tables.page(sweep, results, found))
    if sweep.plots and found:
        for name, content in plot.drawn(sweep, found).items():
            storage.write_whole(folder / name, content)
    return results


def _check_teachers(runs: Sequence[Run]) -> None:
    """Raise `UserError` where runs of one table learned from different teachers of one name.

    A store that they share says itself whose it is.
    """
    first: dict[tuple[str, int | None], tuple[Run, str]] = {}
    for run in runs:
        loss = run.config.loss
        if not (isinstance(loss, Distillation) and isinstance(loss.teacher, Online)):
            continue
        if state_of(run) == "to do":  # what it left of a start is written anew
            continue
        there = taught_by(run.config.folder)
        if there is None:
            continue
        name = loss.teacher.weights, loss.teacher.step
        other, was = first.setdefault(name, (run, there.sha256))
        require(
            was == there.sha256,
            f"runs {other.name!r} and {run.name!r} learned from different teachers, both called "
            f"{name[0]!r} (SHA-256 {was[:12]}... and {there.sha256[:12]}... in their {TEACHER}): "
            f"remove the folder of the one whose teacher is gone, {other.config.folder!r} or "
            f"{run.config.folder!r}",
        )


def _make(run: Run, lock: Lock, stop: Interruption, progress: Progress) -> Failure | None:
    """Run the commands of a run; None if it is finished then."""
    folder = _folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_whole(storage.path(str(folder / RECORD)), record(run.config))
    log, start = folder / LOG, (folder / LOG).stat().st_size if (folder / LOG).exists() else 0

    def look() -> None:
        words = f"{run.name} · {last_line(log, start)}"
        progress.update(progress.task_ids[0], description=words)

    progress.update(progress.task_ids[0], description=run.name)
    how = None
    for command in commands_of(run):
        if how is None and not stop.requested:
            how = run_logged(command, log, lock=lock, stop=stop, look=look)
    if how is None and not (folder / SUMMARY).exists():
        how = f"ended without its {SUMMARY}"
    if how is None:
        return None
    return Failure(run=run, how=how, line=last_line(log, start), log=log)


def _figure(sweep: Sweep, found: Result) -> str:
    """What a finished run reached, in words."""
    if found.metric is not None:
        return f"{sweep.figure} {found.metric:.4f}"
    known = ", ".join(summary(found.run))
    return f"no {sweep.metric!r} among its figures ({known})"


def _folder(run: Run) -> Path:
    return Path(run.config.folder).expanduser()


def _progress(console: Console, total: int) -> Progress:
    """A bar of the runs with what the running one said last; nothing off a terminal."""
    words = TextColumn(
        "{task.description}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
    )
    progress = Progress(
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        words,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    progress.add_task("", total=total)
    return progress
