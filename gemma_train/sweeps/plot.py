"""The picture of a sweep: its plots side by side, on white, as SVG and as PNG."""

import math
from collections.abc import Sequence
from typing import Any

from gemma_train import storage
from gemma_train.metrics import recorder
from gemma_train.metrics.interval import Mean
from gemma_train.metrics.picture import FAINT, INK, colours, dress, finite, pictured
from gemma_train.metrics.wording import count
from gemma_train.run_files import METRICS
from gemma_train.sweeps.algebra import Value, shown
from gemma_train.sweeps.results import Group, Result
from gemma_train.sweeps.sweep import AtEnd, OverTokens, Sweep, told

LOGARITHMIC_FROM = 8  # the ratio of the largest to the smallest number on the x axis


def drawn(sweep: Sweep, groups: Sequence[Group]) -> dict[str, bytes]:
    """The files of the picture by name. The same results give the same bytes."""

    def plotted(every: Any) -> None:
        for axes, plot in zip(every[0], sweep.plots, strict=True):
            match plot:
                case AtEnd():
                    _at_end(axes, plot, sweep, groups)
                case OverTokens():
                    _over_tokens(axes, plot, groups)
            dress(axes, _said(groups))

    return pictured("results", plotted, columns=len(sweep.plots), salt=sweep.folder)


def _at_end(axes: Any, plot: AtEnd, sweep: Sweep, groups: Sequence[Group]) -> None:
    """Lines through the means with bars for their intervals; level lines for what has no x."""
    drawn = [(group, group.mean) for group in groups]
    if plot.against_baseline:
        nothing = {sweep.baseline: Mean.of([0.0])}  # the baseline's own place on its line
        drawn = [(one, one.difference or nothing.get(one.name)) for one in groups]
    drawn = [(group, mean) for group, mean in drawn if mean is not None]
    lines: dict[str, list[tuple[Group, Mean]]] = {}
    for group, mean in drawn:
        rest = {name: value for name, value in group.factors.items() if name != plot.x}
        if plot.x in group.factors:
            lines.setdefault(told(rest), []).append((group, mean))
    values = [group.factors[plot.x] for line in lines.values() for group, _ in line]
    place = _scale(axes, list(dict.fromkeys(values)))
    for (name, line), colour in zip(lines.items(), colours(len(lines)), strict=True):
        line.sort(key=lambda one: place[one[0].factors[plot.x]])
        places = [place[group.factors[plot.x]] for group, _ in line]
        _bars(axes, places, [mean for _, mean in line], name, colour)
        if not plot.against_baseline:
            _dots(axes, places, [group for group, _ in line], colour)
    for group, mean in drawn:
        if plot.x not in group.factors:
            axes.axhline(finite(mean.mean), color=FAINT, linestyle="--", label=group.name)
    axes.set(xlabel=plot.x, ylabel=sweep.figure)
    if plot.against_baseline:
        axes.axhline(0, color=INK, linewidth=1)
        axes.set(ylabel=f"{sweep.figure} against {sweep.baseline}")


def _bars(axes: Any, places: list[float], means: list[Mean], name: str, colour: Any) -> None:
    line, reach = [finite(mean.mean) for mean in means], [_reach(mean) for mean in means]
    axes.errorbar(
        places, line, reach, color=colour, marker="o", markersize=5, capsize=3, label=name
    )
    edge = axes.get_xaxis_transform()
    for where, mean in zip(places, means, strict=True):
        if not math.isfinite(mean.mean):  # a run that blew up, at the upper edge
            axes.plot([where], [0.97], "x", color=colour, markersize=7, transform=edge)


def _dots(axes: Any, places: list[float], groups: list[Group], colour: Any) -> None:
    """Every run's own figure, faint."""
    for where, group in zip(places, groups, strict=True):
        figures = [finite(one.metric) for one in group.results]
        axes.plot([where] * len(figures), figures, "o", color=colour, alpha=0.4, markersize=3)


def _over_tokens(axes: Any, plot: OverTokens, groups: Sequence[Group]) -> None:
    """The mean of each group's curves, and a band for its interval."""
    seen = []
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        curves = [_curve(one, plot) for one in group.results]
        tokens = sorted(set.intersection(*map(set, curves)))
        means = [Mean.of([curve[token] for curve in curves]) for token in tokens]
        line = [finite(mean.mean) for mean in means]
        axes.plot(tokens, line, color=colour, marker="o", markersize=3, label=group.name)
        if len(curves) > 1:
            low, high = [finite(m.low) for m in means], [finite(m.high) for m in means]
            axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        seen += [value for value in line if math.isfinite(value)]
    if seen:  # the curves choose the scale: of two seeds a band is wide
        margin = 0.1 * (max(seen) - min(seen)) or 0.1
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.set(xlabel="tokens", ylabel=plot.label)
    axes.xaxis.set_major_formatter(lambda value, _: count(value))


def _curve(one: Result, plot: OverTokens) -> dict[int, float]:
    """The scalar by tokens seen, of one run."""
    folder = storage.path(one.run.config.folder)
    lines = recorder.read(folder) if (folder / METRICS).exists() else []
    return {
        line["step"] * one.run.config.step_tokens: float(line[plot.scalar])
        for line in lines
        if line["kind"] == "evaluation"
        and plot.scalar in line
        and line["step"] * one.run.config.step_tokens >= plot.after_tokens
    }


def _scale(axes: Any, values: list[Value]) -> dict[Value, float]:
    """Where each value lies along x: numbers to scale, texts side by side."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        places = {value: float(index) for index, value in enumerate(values)}
        axes.margins(x=0.2)
    else:
        places = dict(zip(values, numbers, strict=True))
        if min(numbers, default=0.0) > 0 and max(numbers) >= LOGARITHMIC_FROM * min(numbers):
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
    axes.set_xticks(list(places.values()), [shown(value) for value in places])
    return places


def _said(groups: Sequence[Group]) -> str:
    """Of how many runs the means are, and what the bars and bands are."""
    counts = sorted({group.mean.count for group in groups})
    runs = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"means of {runs} runs, 95 % intervals by Student's t" if counts[-1] > 1 else ""


def _reach(mean: Mean) -> float:
    """Half of the interval; nothing is drawn for a single run."""
    return math.nan if mean.high is None else finite(mean.high - mean.mean)
