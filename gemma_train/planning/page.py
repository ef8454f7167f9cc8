"""A plan as one web page that needs nothing beside itself: memory, traffic, time, cost."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_train.config import record
from gemma_train.metrics.curves import FAINT, HELD_OUT, RULE, TRAIN, inline
from gemma_train.metrics.wording import byte_count, count, longest_unit, moment
from gemma_train.planning.plan import Plan, assumptions
from gemma_train.planning.text import NO_CHANGE, PEAK_SAYS, head, thousands

TEMPLATE = "plan.html.jinja"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Named amounts, drawn as bars over one scale; a limit is a line across them."""

    name: str  # also the salt of the drawing's ids
    amounts: list[tuple[str, float, str]]  # name, amount, and how it is written
    limit: float | None = None
    strong: str | None = None  # the bar that is drawn in the second colour


def page(plan: Plan) -> str:
    """The HTML of a plan."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    rooms = [Path(__file__).parent, Path(__file__).parents[1] / "metrics"]
    environment = Environment(loader=FileSystemLoader(rooms), autoescape=True, trim_blocks=True)
    return environment.get_template(TEMPLATE).render(
        name=plan.name,
        lead=" · ".join(" ".join(line.split()) for line in head(plan)[1:]),
        headline=_headline(plan),
        plan=plan,
        peak_says=PEAK_SAYS[plan.memory.source],
        memory_bars=Markup(draw(_memory_bars(plan))),
        time_bars=Markup(draw(_time_bars(plan))),
        run=_run(plan),
        assumptions=assumptions(plan),
        no_change=NO_CHANGE,
        config=record(plan.config),
        byte_count=byte_count,
    )


def _headline(plan: Plan) -> list[tuple[str, str, str]]:
    """The figures on top: what, how much, and in which unit."""
    slices, found = plan.slices, plan.memory
    pod = slices.name if slices.count == 1 else f"{slices.count} x {slices.name}"
    least = "at least, " if found.source == "refused" else ""
    usable = byte_count(found.usable_bytes)
    return [
        ("chips", f"{slices.chips:,}", pod),
        ("memory of a chip", byte_count(found.peak_bytes), f"{least}of {usable}"),
        ("step", moment(plan.estimate.step_seconds), f"bound by {plan.estimate.bound}"),
        ("MFU", f"{100 * plan.estimate.mfu:.1f} %", "estimated"),
        ("run", *longest_unit(plan.cost.seconds)),
        ("chip-hours", count(plan.cost.chip_hours), ""),
    ]


def _memory_bars(plan: Plan) -> Bars:
    found = plan.memory
    amounts = {
        "parameters": found.state.parameters,
        "moments": found.state.moments,
        "gradients": found.state.gradients,
        **({"teacher": found.state.teacher} if found.state.teacher else {}),
        "activations": found.activation_bytes,
        "peak": found.peak_bytes,
    }
    return Bars(
        name="memory",
        amounts=[(name, float(size), byte_count(size)) for name, size in amounts.items()],
        limit=float(found.usable_bytes),
        strong="peak",
    )


def _time_bars(plan: Plan) -> Bars:
    found = plan.estimate
    seconds = {name: spent for name, spent in found.resources.items() if spent}
    seconds["step"] = found.step_seconds
    return Bars(
        name="time",
        amounts=[(name, spent, moment(spent)) for name, spent in seconds.items()],
        strong="step",
    )


def _run(plan: Plan) -> list[tuple[str, str]]:
    """The figures of the whole run, exactly."""
    spent = plan.cost
    rows = [
        ("tokens", f"{plan.tokens:,}"),
        ("days", f"{spent.seconds / 86_400:,.1f}"),
        ("chip-hours", f"{spent.chip_hours:,.0f}"),
        ("energy", thousands(spent.kilowatt_hours, "kWh", "MWh")),
        ("carbon", thousands(spent.kilograms_co2, "kg CO2", "t CO2")),
    ]
    if spent.money is not None:
        rows.append(("money", f"{spent.money:,.0f} at {plan.cost_inputs.price:g} a chip-hour"))
    return rows


def draw(bars: Bars) -> str:
    """The `<svg>` element of bars, coloured by the page around it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": bars.name, "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(6.4, 0.34 * len(bars.amounts) + 0.3), layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, bars)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return inline(text.getvalue())


def _plot(axes: Any, bars: Bars) -> None:
    names = [name for name, _, _ in bars.amounts]
    values = [value for _, value, _ in bars.amounts]
    colours = [HELD_OUT if name == bars.strong else TRAIN for name in names]
    axes.barh(names, values, color=colours, height=0.62)
    longest = max(*values, bars.limit or 0.0)
    for number, (_, value, told) in enumerate(bars.amounts):
        axes.text(value + longest / 100, number, told, va="center", color=FAINT)
    if bars.limit is not None:
        axes.axvline(bars.limit, color=FAINT, linewidth=1, linestyle=(0, (4, 4)))
    axes.set_xlim(0, 1.16 * longest)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.spines["left"].set_visible(True)
    axes.spines["left"].set_color(RULE)
    axes.tick_params(length=0, labelcolor=FAINT, pad=6, labelbottom=False)
