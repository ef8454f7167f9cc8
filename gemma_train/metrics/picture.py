"""Pictures of figures, for a page in a repository: plots on white, as SVG and as PNG."""

import io
import math
from collections.abc import Callable
from typing import Any

INK, FAINT, RULE = "#222222", "#666666", "#dddddd"
_INCHES = (5.6, 4.0)  # of one plot
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
}


def pictured(
    stem: str, plot: Callable[[Any], None], *, columns: int = 1, rows: int = 1, salt: str = ""
) -> dict[str, bytes]:
    """`stem`.svg and `stem`.png of what `plot` draws into rows x columns of matplotlib axes.

    `plot` is given the array of axes. The same drawing and salt give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": salt or stem}):
        width, height = _INCHES
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        plot(figure.subplots(rows, columns, squeeze=False))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        return {
            f"{stem}.svg": _saved(figure, format="svg", metadata=nothing),
            f"{stem}.png": _saved(figure, format="png", dpi=160, metadata={"Software": None}),
        }


def _saved(figure: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, facecolor="white", **how)
    return file.getvalue()


def dress(axes: Any, said: str = "") -> None:
    """Axes without a frame, with faint rules, what is `said` above them and what is drawn named."""
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.tick_params(which="both", length=0, pad=6)
    axes.set_title(said, fontsize=8, color=FAINT, loc="left")
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(frameon=False, fontsize=8)


def colours(number: int) -> list[Any]:
    """As many colours that can be told apart."""
    from matplotlib import color_sequences, colormaps

    if number <= 10:
        return list(color_sequences["tab10"][:number])
    return [colormaps["viridis"](0.9 * index / (number - 1)) for index in range(number)]


def finite(value: float | None) -> float:
    """The value, or what is left out of a drawing."""
    return value if value is not None and math.isfinite(value) else math.nan
