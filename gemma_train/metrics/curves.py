"""The curves of a run as inline SVG that takes its colours and its font from the page around it.

Matplotlib draws in sentinel colours, which are then replaced by CSS variables: one drawing looks
right on a light page and on a dark one.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gemma_train.metrics.wording import count

POINTS = 2000
# Sentinel colour -> CSS variable of `report.html.jinja`.
COLOURS = {
    "#010203": "var(--faint)",
    "#020304": "var(--rule)",
    "#030405": "var(--train)",
    "#040506": "var(--held-out)",
}
FAINT, RULE, TRAIN, HELD_OUT = COLOURS
ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks, up to powers of ten


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values over steps, both of shape (points,) and finite, the steps ascending."""

    step: np.ndarray
    value: np.ndarray

    def at(self, index: np.ndarray) -> "Series":
        """The points of these indexes."""
        return Series(step=self.step[index], value=self.value[index])


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One plot: what is drawn, and how."""

    name: str  # also the salt of the drawing's ids: two plots of a page never share one
    train: Series
    held_out: Series | None = None
    level: float | None = None  # a horizontal line to compare with
    label: Callable[[float], str] = count  # of the values
    smoothed: bool = True
    logarithmic: bool = False
    from_zero: bool = False
    inches: tuple[float, float] = (5.0, 2.3)

    @property
    def is_smoothed(self) -> bool:
        """Whether a smoothed line lies over the faint one of each step: not on short runs."""
        return self.smoothed and len(self.train.step) >= 100


def thin(value: np.ndarray, limit: int = POINTS) -> np.ndarray:
    """Indexes of at most `limit` points: the first, the last, each stretch's lowest and highest."""
    if len(value) <= limit:
        return np.arange(len(value))
    kept = {0, len(value) - 1}
    for start, stop in pairwise(np.linspace(0, len(value), limit // 2, dtype=int)):
        stretch = value[start:stop]
        kept |= {int(start + stretch.argmin()), int(start + stretch.argmax())}
    return np.array(sorted(kept))


def smooth(value: np.ndarray) -> np.ndarray:
    """The mean over a window of 4 % of the run, centred, and narrower near the start.

    Centred, so that it does not lag; narrow at first, where a loss falls too fast to be averaged.
    """
    index = np.arange(len(value))
    reach = np.minimum(index // 2, len(value) // 50)
    total = np.concatenate([[0.0], np.cumsum(value)])
    stop = np.minimum(index + reach + 1, len(value))
    return (total[stop] - total[index - reach]) / (stop - index + reach)


def draw(curve: Curve) -> str:
    """The `<svg>` element of a curve, without size, font or colours of its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": curve.name, "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=curve.inches, layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, curve)
        _dress(axes, curve)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return inline(text.getvalue())


def _plot(axes: Any, curve: Curve) -> None:
    train = curve.train
    marker = "o" if len(train.step) <= 30 else None
    raw = train.at(thin(train.value))
    axes.plot(
        raw.step,
        raw.value,
        color=TRAIN,
        marker=marker,
        markersize=3,
        linewidth=0.7 if curve.is_smoothed else 1.6,
        alpha=0.3 if curve.is_smoothed else 1,
    )
    if curve.is_smoothed:
        line = Series(step=train.step, value=smooth(train.value))
        line = line.at(thin(line.value))
        axes.plot(line.step, line.value, color=TRAIN, linewidth=1.8)
    if curve.held_out is not None:
        points = curve.held_out.at(thin(curve.held_out.value, 200))
        axes.plot(
            points.step,
            points.value,
            color=HELD_OUT,
            marker="o",
            markersize=3.5 if len(points.step) <= 60 else 2,
            linewidth=1,
        )
    if curve.level is not None:
        axes.axhline(curve.level, color=FAINT, linewidth=1, linestyle=(0, (4, 4)))


def _dress(axes: Any, curve: Curve) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    label = FuncFormatter(lambda value, _: curve.label(value))

    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.tick_params(length=0, labelcolor=FAINT, pad=6)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: count(step)))
    axes.yaxis.set_major_formatter(label)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    if curve.logarithmic and curve.train.value.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_logarithmic_ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(label)
    elif curve.from_zero:
        axes.set_ylim(0, max(1.08 * curve.train.value.max(), 1e-12))


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, about five."""
    from matplotlib.ticker import MaxNLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return [
        tick for tick in MaxNLocator(5, steps=ROUND).tick_values(low, high) if low <= tick <= high
    ]


def inline(document: str) -> str:
    """The element alone: no prolog, no fixed size, colours by the page's variables."""
    element = document[document.index("<svg") :]
    head, body = element.split(">", 1)
    box = head[head.index('viewBox="') :].split('"')[1]
    for sentinel, variable in COLOURS.items():
        body = body.replace(sentinel, variable)
    return f'<svg viewBox="{box}" aria-hidden="true">{body}'
