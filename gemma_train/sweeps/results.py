"""What a sweep found: a result for each run, and statistics over the seeds of a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemma_train import storage
from gemma_train.contents import read_object
from gemma_train.metrics import recorder
from gemma_train.metrics.interval import Mean
from gemma_train.run_files import METRICS, SUMMARY
from gemma_train.sweeps.algebra import SEED, Value
from gemma_train.sweeps.sweep import Run

State = Literal["done", "failed", "begun", "to do"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run's figures, None where they are not known (yet)."""

    run: Run
    state: State
    metric: float | None = None  # what the sweep compares
    training_loss: float | None = None  # of the last step
    minutes: float | None = None  # of its steps, over all its lives; without evaluations and saves


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished runs that differ by their seeds only."""

    name: str
    results: tuple[Result, ...]
    mean: Mean
    difference: Mean | None  # from the baseline, seed by seed; None without common seeds

    @property
    def factors(self) -> dict[str, Value]:
        """The labels that its runs share."""
        return self.results[0].run.factors


def result(run: Run, state: State, metric: str) -> Result:
    """What a run's folder says; figures are read of finished runs only.

    Raises `UserError` for files that are not what they should be.
    """
    if state != "done":
        return Result(run=run, state=state)
    folder = storage.path(run.config.folder)
    lines = recorder.read(folder) if (folder / METRICS).exists() else []
    steps = [line for line in lines if line["kind"] == "train"]
    seconds = [line.get("seconds_per_step", line.get("first_step_seconds")) for line in steps]
    known = [second for second in seconds if isinstance(second, int | float)]
    return Result(
        run=run,
        state=state,
        metric=_number(summary(run).get(metric)),
        training_loss=_number(steps[-1].get("loss")) if steps else None,
        minutes=sum(known) / 60 if known else None,
    )


def summary(run: Run) -> dict[str, Any]:
    """The figures that a finished run left."""
    file = storage.path(run.config.folder) / SUMMARY
    return read_object(file, "mend it, or remove that run")


def groups(results: Sequence[Result], baseline: str | None) -> list[Group]:
    """The groups that have finished runs, in the order of their first ones."""
    found: dict[str, list[Result]] = {}
    for one in results:
        if one.metric is not None:
            found.setdefault(one.run.group, []).append(one)
    against = _by_seed(found.get(baseline or "", []))
    return [
        Group(
            name=name,
            results=tuple(members),
            mean=Mean.of(list(_by_seed(members).values())),
            difference=None if name == baseline else _difference(_by_seed(members), against),
        )
        for name, members in found.items()
    ]


def _by_seed(members: Sequence[Result]) -> dict[Any, float]:
    return {one.run.labels.get(SEED): one.metric for one in members if one.metric is not None}


def _difference(values: dict[Any, float], against: dict[Any, float]) -> Mean | None:
    """The mean of the differences at the seeds that both have."""
    pairs = [value - against[seed] for seed, value in values.items() if seed in against]
    return Mean.of(pairs) if pairs else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
