"""The tables of a sweep: results.csv and groups.csv in full precision, results.md to be read."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from gemma_train.metrics.interval import Mean
from gemma_train.sweeps.algebra import SEED, shown
from gemma_train.sweeps.results import Group, Result
from gemma_train.sweeps.sweep import Sweep

PICTURE = "results.svg"


def factors(sweep: Sweep) -> list[str]:
    """The labels of the sweep's runs in the order of their appearance, without the seed."""
    return list(dict.fromkeys(label for run in sweep.runs for label in run.factors))


def runs_csv(sweep: Sweep, results: Sequence[Result]) -> str:
    """A row for each run, figures to the last bit."""
    names = factors(sweep)
    head = ["name", *names, SEED, "steps", "tokens", sweep.metric]
    rows = [
        [
            one.run.name,
            *(one.run.labels.get(name) for name in [*names, SEED]),
            one.run.config.steps,
            one.run.tokens,
            one.metric,
            one.training_loss,
            one.minutes,
            one.state,
        ]
        for one in results
    ]
    return _csv([*head, "training_loss", "minutes", "state"], rows)


def groups_csv(sweep: Sweep, groups: Sequence[Group]) -> str:
    """A row for each group: the statistics over its seeds, and against the baseline."""
    names = factors(sweep)
    fields = ("count", "mean", "deviation", "low", "high")
    head = ["group", *names, *fields, *(f"difference_{field}" for field in fields)]
    rows = [
        [
            group.name,
            *(group.factors.get(name) for name in names),
            *(
                getattr(mean, field, None)
                for mean in (group.mean, group.difference)
                for field in fields
            ),
        ]
        for group in groups
    ]
    return _csv(head, rows)


def page(sweep: Sweep, results: Sequence[Result], groups: Sequence[Group]) -> str:
    """results.md: over seeds, against the baseline, run by run."""
    done = sum(one.state == "done" for one in results)
    parts = [
        f"# {PurePath(sweep.folder).name}",
        f"{done} of {len(results)} runs done. Compared is the {sweep.figure}.",
        "## Over seeds",
        _over_seeds(groups),
        *_against(sweep, groups),
        "## Runs",
        _runs(sweep, results),
        *([f"![{sweep.figure}]({PICTURE})"] if sweep.plots and groups else []),
    ]
    return "\n\n".join(parts) + "\n"


def _over_seeds(groups: Sequence[Group]) -> str:
    rows = [
        [
            group.name,
            group.mean.count,
            _figure(group.mean.mean),
            _figure(group.mean.deviation),
            _interval(group.mean),
        ]
        for group in groups
    ]
    head = ["group", "runs", "mean", "standard deviation", "95 % interval"]
    return _markdown(head, rows) if rows else "No run is finished yet."


def _against(sweep: Sweep, groups: Sequence[Group]) -> list[str]:
    """The differences from the baseline, where there is one and it has finished runs."""
    rows = [
        [
            group.name,
            group.difference.count,
            _figure(group.difference.mean, "+"),
            _interval(group.difference, "+"),
        ]
        for group in groups
        if group.difference is not None
    ]
    if not rows:
        return []
    head = ["group", "pairs", "mean difference", "95 % interval"]
    return [f"## Against {sweep.baseline}, seed by seed", _markdown(head, rows)]


def _runs(sweep: Sweep, results: Sequence[Result]) -> str:
    names = [*factors(sweep), SEED]
    head = ["run", *names, "steps", "tokens", sweep.figure, "training loss", "minutes", "state"]
    rows = [
        [
            one.run.name,
            *(shown(one.run.labels[name]) if name in one.run.labels else "" for name in names),
            f"{one.run.config.steps:,}",
            f"{one.run.tokens:,}",
            _figure(one.metric),
            _figure(one.training_loss),
            "" if one.minutes is None else f"{one.minutes:.1f}",
            one.state,
        ]
        for one in results
    ]
    return _markdown(head, rows)


def _figure(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4f}"


def _interval(mean: Mean, sign: str = "") -> str:
    if mean.low is None:
        return "needs two seeds"
    return f"{_figure(mean.low, sign)} to {_figure(mean.high, sign)}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue()
