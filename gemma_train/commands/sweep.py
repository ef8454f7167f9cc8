"""`gemma-train sweep FILE`: the named runs of a sweep one after the other, its tables and plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rich.console import Console

from gemma_train.definition import load_definition
from gemma_train.errors import require
from gemma_train.metrics.wording import count
from gemma_train.sweeps.results import State
from gemma_train.sweeps.runner import PLAIN, run_all, state_of
from gemma_train.sweeps.sweep import Run, Sweep, told


# `file` is positional on the command line.
@dataclass(frozen=True, kw_only=True)
class SweepArguments:
    """Run what a sweep file names, or go on where it stopped; then write its tables and plot."""

    file: str  # a Python file that ends in `sweep = Sweep(...)`, as in configs/ablations/
    name: str = "sweep"  # which of the file's sweeps: its variable, such as pod
    only: str = "*"  # the runs whose names match, such as "*/seed=0"
    dry_run: bool = False  # list the runs, and what is left to do, and end


def run(arguments: SweepArguments) -> int:
    """The exit code: 1 where a run failed, after all others had their turn."""
    sweep = load_definition(arguments.file, arguments.name, Sweep, what="sweep")
    chosen = [run for run in sweep.placed if fnmatchcase(run.name, arguments.only)]
    require(
        bool(chosen),
        f"only is {arguments.only!r}: none of {len(sweep.runs)} runs matches, such as "
        f"{sweep.runs[0].name!r}",
    )
    states = {run.name: state_of(run) for run in sweep.placed}
    console = Console()
    console.print(_announced(sweep, chosen, states), **PLAIN)
    if arguments.dry_run:
        for line in _listed(chosen, states):
            console.print(line, **PLAIN)
        return 0
    try:
        failures = run_all(sweep, chosen, console)
    except KeyboardInterrupt:
        console.print("the same command goes on from here", **PLAIN)
        raise
    console.print(f"wrote {sweep.folder}/results.md", **PLAIN)
    if failures:
        console.print(f"{len(failures)} of {len(chosen)} runs failed:", **PLAIN)
    for failure in failures:
        console.print(f"  {failure.told}", **PLAIN)
    return 1 if failures else 0


def _announced(sweep: Sweep, chosen: Sequence[Run], states: dict[str, State]) -> str:
    left = [run for run in chosen if states[run.name] != "done"]
    tokens = count(sum(run.tokens for run in left))
    done = len(chosen) - len(left)
    begun = sum(states[run.name] == "begun" for run in left)
    told_begun = f", {begun} of them begun" if begun else ""
    return (
        f"{sweep.folder}: {len(chosen)} runs, {done} done, {len(left)} to do{told_begun} "
        f"({tokens} tokens)"
    )


def _listed(chosen: Sequence[Run], states: dict[str, State]) -> list[str]:
    """A line for each run: name, state, tokens, labels."""
    width = max(len(run.name) for run in chosen)
    return [
        f"  {run.name:{width}}  {states[run.name]:6} {count(run.tokens):>6} tokens  "
        f"{told(run.labels).replace(',', ' ')}".rstrip()
        for run in chosen
    ]
