"""The picture of what models make of a long context: a line for each, on six plots."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemma_train.evaluation.over_context import AtLength, Found
from gemma_train.metrics.interval import Mean, Share
from gemma_train.metrics.picture import colours, dress, pictured

_OVER_LENGTH: tuple[tuple[int, int, str, Callable[[AtLength], Mean | Share]], ...] = (
    (0, 1, "needle: answered right", lambda one: one.needle.right),
    (1, 1, "needle: loss of the answer (nats a token)", lambda one: one.needle.loss),
    (0, 2, "key-values: answered right", lambda one: one.key_value.right),
    (1, 2, "key-values: loss of the answer (nats)", lambda one: one.key_value.loss),
)
_OF_ROWS = "bands: 95 % intervals over rows"
_OF_CHANGE = "bands: 95 % intervals of the change from the shortest context, row by row"


def drawn(found: Mapping[str, Found]) -> dict[str, bytes]:
    """The files of the picture by name, from figures by the names of their lines."""

    def plotted(axes: Any) -> None:
        for (name, one), colour in zip(found.items(), colours(len(found)), strict=True):
            _lines(axes, one, name, colour)
        axes[0][0].set(ylabel="loss by position (nats a token)", xlabel="position in the row")
        axes[1][0].set(ylabel="loss of the final window (nats a token)")
        for row, column, label, _ in _OVER_LENGTH:
            axes[row][column].set(ylabel=label)
        lengths = sorted({at.length for one in found.values() for at in one.at_length})
        for one in axes.flat:
            one.set_xscale("log", base=2)
            if one is not axes[0][0]:
                one.set(xlabel="context (tokens)", xticks=lengths)
            one.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            dress(one, _OF_CHANGE if one is axes[1][0] else _OF_ROWS)
        for column in (1, 2):
            axes[0][column].set_ylim(-0.02, 1.02)

    return pictured("context", plotted, rows=2, columns=3)


def _lines(axes: Any, found: Found, name: str, colour: Any) -> None:
    """A model's line on each of the plots; its name stands on the first."""
    bins, at_length = found.by_position, found.at_length
    middles = [(one.first + one.stop) / 2 for one in bins]
    _line(axes[0][0], middles, [one.loss for one in bins], colour, name)
    lengths = [float(one.length) for one in at_length]
    shortest = at_length[0].final_window.mean
    _line(axes[1][0], lengths, [one.change.plus(shortest) for one in at_length], colour)
    for row, column, _, figure in _OVER_LENGTH:
        _line(axes[row][column], lengths, [figure(one) for one in at_length], colour)


def _line(
    axes: Any,
    places: Sequence[float],
    values: Sequence[Mean | Share],
    colour: Any,
    name: str | None = None,
) -> None:
    """A line with a band for its interval."""
    middle = [one.share if isinstance(one, Share) else one.mean for one in values]
    low, high = [one.low for one in values], [one.high for one in values]
    axes.plot(places, middle, color=colour, marker="o", markersize=3.5, label=name)
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
