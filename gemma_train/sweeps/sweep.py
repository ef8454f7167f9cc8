"""What a sweep file leaves: `sweep = Sweep(...)`, its named runs and what is compared of them."""

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from gemma_train.config import RunConfig
from gemma_train.errors import require
from gemma_train.sweeps.algebra import SEED, Value, Variants, shown

TRAIN = (sys.executable, "-m", "gemma_train", "train")
TEACH = (sys.executable, "-m", "gemma_train", "teacher")
HELD_OUT_LOSS = "held_out_loss"
PART = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*"
NAME = re.compile(rf"{PART}(/{PART})*")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One named run of a sweep. `runs_of` makes them of variants; by hand, it is a single one."""

    name: str  # its folder below the sweep's
    config: RunConfig  # the whole run; its folder is the sweep's to choose
    labels: Mapping[str, Value] = field(default_factory=dict)  # its columns in the tables
    # What makes it, before the path of its record. Another command finds the run's folder in that
    # record, and must leave figures there by `training.claim.write_summary`.
    command: tuple[str, ...] = TRAIN

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"run {self.name!r}: a name is a folder's: letters, digits and . _ = , + - "
            "in parts that begin with a letter or digit, with / between them",
        )
        require(bool(self.command), f"run {self.name!r}: command is empty: name a program")

    @property
    def factors(self) -> dict[str, Value]:
        """The labels without the seed."""
        return {label: value for label, value in self.labels.items() if label != SEED}

    @property
    def group(self) -> str:
        """What it is a repetition of: the runs of one group differ by their seeds only."""
        if not self.labels:
            return self.name
        return told(self.factors) or "all"

    @property
    def tokens(self) -> int:
        """Tokens that it trains on."""
        return self.config.steps * self.config.step_tokens


@dataclass(frozen=True, kw_only=True)
class AtEnd:
    """A plot of the figure at the end of the runs over one label, a line for all the others.

    Runs without that label, such as a teacher, are level lines to compare with.
    """

    x: str  # the label on the x axis: numbers are drawn to scale, texts side by side
    against_baseline: bool = False  # draw the differences from the baseline, seed by seed


@dataclass(frozen=True, kw_only=True)
class OverTokens:
    """A plot of an evaluated scalar over the tokens seen, a curve for each group."""

    scalar: str = "loss"  # of the evaluation lines of metrics.jsonl
    label: str = "held-out loss (nats a token)"  # of the y axis
    after_tokens: float = 0.0  # leave out what was before: a loss falls fast at first


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Named runs in the order in which they run, and what is compared of them."""

    folder: str  # where runs, logs, tables and plots go: a local folder
    runs: tuple[Run, ...]  # a run that needs another's folder stands after it
    metric: str = HELD_OUT_LOSS  # what is compared: a figure of each run's summary.json
    metric_label: str = ""  # how tables and plots call it
    baseline: str | None = None  # the group that others are held against, such as "lr=0.004"
    plots: tuple[AtEnd | OverTokens, ...] = ()  # side by side in one picture

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder is empty: name one, such as runs/sweeps/mine")
        require(
            "://" not in self.folder,
            f"folder is {self.folder!r}: a sweep keeps logs and tables in a local folder",
        )
        require(
            isinstance(self.runs, tuple) and bool(self.runs),
            "runs are none: give a tuple of runs, such as runs_of(base, seeds(2))",
        )
        self._check_names()
        groups = dict.fromkeys(run.group for run in self.runs)
        require(
            self.baseline is None or self.baseline in groups,
            f"baseline is {self.baseline!r}, no group of runs: choose one of {_some(groups)}",
        )
        labels = dict.fromkeys(label for run in self.runs for label in run.factors)
        for plot in self.plots:
            if isinstance(plot, AtEnd):
                require(
                    plot.x in labels,
                    f"{plot} asks for a label that no run has: choose one of {_some(labels)}",
                )
                require(
                    self.baseline is not None or not plot.against_baseline,
                    f"{plot} needs a baseline: choose one of {_some(groups)}",
                )

    def _check_names(self) -> None:
        names = [run.name for run in self.runs]
        for name, parents in ((name, PurePosixPath(name).parents) for name in names):
            require(
                names.count(name) == 1,
                f"two runs are named {name!r}: a name is a folder, give each its own",
            )
            for other in map(str, parents):
                require(other not in names, f"run {name!r} would lie in the folder of {other!r}")
        labelled = [run for run in self.runs if run.labels]
        for one, other in itertools.combinations(labelled, 2):
            require(
                one.labels != other.labels,
                f"runs {one.name!r} and {other.name!r} have the same labels: add one that differs",
            )

    @property
    def placed(self) -> tuple[Run, ...]:
        """The runs, each with its folder below the sweep's."""
        return tuple(
            replace(run, config=replace(run.config, folder=f"{self.folder}/{run.name}"))
            for run in self.runs
        )

    @property
    def figure(self) -> str:
        """The metric in words."""
        known = {HELD_OUT_LOSS: "held-out loss (nats a token)"}
        return self.metric_label or known.get(self.metric, self.metric.replace("_", " "))


def runs_of(base: RunConfig, variants: Variants) -> tuple[Run, ...]:
    """A run for each variant of `base`, named by its labels, as in `lr=0.001,width=64/seed=1`."""
    return tuple(
        Run(name=_name(variant.labels), config=variant(base), labels=variant.labels)
        for variant in variants
    )


def told(labels: Mapping[str, Value]) -> str:
    """Labels as a text: lr=0.001,width=64."""
    return ",".join(f"{label}={shown(value)}" for label, value in labels.items())


def _name(labels: Mapping[str, Value]) -> str:
    """The labels as a folder's name, the seed as one within it; "base" without labels."""
    groups = told({label: value for label, value in labels.items() if label != SEED})
    seeded = told({SEED: labels[SEED]}) if SEED in labels else ""
    names = [re.sub(r"[^A-Za-z0-9._=,+-]+", "-", part) for part in (groups, seeded) if part]
    return "/".join(names) or "base"


def _some(names: Iterable[str]) -> str:
    """A few names to choose from."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "")
