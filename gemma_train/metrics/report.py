"""A run as one web page that needs nothing beside itself: figures, curves, sample, config."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from gemma_train import run_files
from gemma_train.contents import read_object, read_text
from gemma_train.errors import require
from gemma_train.metrics import captions, recorder
from gemma_train.metrics.curves import Curve, Series, draw
from gemma_train.metrics.goodput import LEAST_SHARE, Goodput, percent
from gemma_train.metrics.wording import count, duration, longest_unit, scientific

TEMPLATE = "report.html.jinja"
MEND = "mend or delete it"

Line = dict[str, Any]


def page(run: epath.Path) -> str:
    """The HTML of the report of a run folder.

    Reads metrics.jsonl and, where they are, config.py, sample.txt, captions.json and summary.json.
    Raises `UserError` if no step is recorded, or if a file is not what it should be.
    """
    from jinja2 import Environment, FileSystemLoader

    lines = recorder.read(run)
    require(
        any(line["kind"] == "train" for line in lines),
        f"{run / run_files.METRICS} holds no training step yet: report it after its first steps",
    )
    summary = _summary(run / run_files.SUMMARY)
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True)
    return environment.get_template(TEMPLATE).render(
        name=run.name or str(run),
        lead=_lead(lines, summary),
        headline=_headline(lines, summary),
        loss=_loss(lines, summary),
        plots=_plots(lines),
        goodput=_goodput(lines),
        summary=[(name.replace("_", " "), _exact(value)) for name, value in summary.items()],
        sample=_text(run / run_files.SAMPLE),
        captions=_captions(run / run_files.CAPTIONS),
        config=_text(run / run_files.RECORD),
    )


def _summary(file: epath.Path) -> Line:
    return read_object(file, MEND) if file.exists() else {}


def _captions(file: epath.Path) -> list[captions.Caption]:
    """Of the images whose pictures are kept."""
    return [one for one in captions.read(file) if one.picture] if file.exists() else []


def _text(file: epath.Path) -> str | None:
    return read_text(file, MEND) if file.exists() else None


def _series(lines: list[Line], name: str, kind: str = "train") -> tuple[Series, int]:
    """The values of a scalar that are finite as float32, which it was; and how many are not."""
    found = [
        (line["step"], line[name])
        for line in lines
        if line["kind"] == kind and isinstance(line.get(name), int | float)
    ]
    step, value = np.array(found, dtype=float).reshape(-1, 2).T
    with np.errstate(over="ignore"):
        finite = np.isfinite(value.astype(np.float32))
    return Series(step=step[finite], value=value[finite]), int((~finite).sum())


def _data_wait(lines: list[Line]) -> list[Line]:
    """The lines with the share of a step spent waiting for data, as `data_wait`."""
    return [
        {**line, "data_wait": line["data_wait_seconds"] / line["seconds_per_step"]}
        for line in lines
        if line.get("seconds_per_step") and "data_wait_seconds" in line
    ]


def _lead(lines: list[Line], summary: Line) -> str:
    begun = time.strftime("%-d %B %Y", time.gmtime(lines[0]["time"]))
    device = summary.get("device") or summary.get("device_kind")
    steps = max(line["step"] for line in lines)
    return " · ".join([f"{steps:,} steps", *([str(device)] if device else []), f"begun {begun}"])


def _headline(lines: list[Line], summary: Line) -> list[tuple[str, str, str]]:
    """The figures on top: what, how much, and in which unit."""
    figures = []
    held_out = _held_out_loss(lines, summary)
    if held_out is not None:
        figures.append(("held-out loss", f"{held_out:.3f}", "nats a token"))
        if (unigram := _number(summary, "unigram_entropy")) is not None:
            figures.append(("under unigrams", f"{unigram - held_out:.3f}", "nats a token"))
    speed = _series(lines, "tokens_per_second")[0]
    if (tokens := _tokens(lines, summary)) is not None:
        figures.append(("tokens seen", count(tokens), ""))
    figures.append(("wall time", *longest_unit(lines[-1]["time"] - lines[0]["time"])))
    if len(speed.value):
        figures.append(("median speed", count(float(np.median(speed.value))), "tokens/s"))
    if (goodput := Goodput.of(lines)) is not None:
        figures.append(("goodput", percent(goodput.share), ""))
    utilization = _series(lines, "model_flops_utilization")[0]
    if len(utilization.value):
        figures.append(("median MFU", f"{100 * np.median(utilization.value):.1f} %", ""))
    return figures


def _number(summary: Line, name: str) -> float | None:
    """A number of the summary that is finite as float32: beyond, nothing can be drawn."""
    value = summary.get(name)
    is_number = isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max)
    return value if is_number else None


def _held_out_loss(lines: list[Line], summary: Line) -> float | None:
    series = _series(lines, "loss", "evaluation")[0]
    return float(series.value[-1]) if len(series.value) else _number(summary, "held_out_loss")


def _tokens(lines: list[Line], summary: Line) -> float | None:
    """As the summary says, or the last step times the tokens of a step."""
    if (tokens := _number(summary, "tokens")) is not None:
        return tokens
    for line in reversed(lines):
        if "tokens_per_second" in line and "seconds_per_step" in line:
            return line["step"] * line["tokens_per_second"] * line["seconds_per_step"]
    return None


def _loss(lines: list[Line], summary: Line) -> dict[str, Any] | None:
    """The plot of training and held-out loss, for a wide page and for a narrow one."""
    train, lost = _series(lines, "loss")
    if not len(train.value):
        return None
    held_out = _series(lines, "loss", "evaluation")[0]
    wide = Curve(
        name="loss",
        train=train,
        held_out=held_out if len(held_out.value) else None,
        level=_number(summary, "unigram_entropy"),
        logarithmic=True,
        inches=(9.6, 4.2),
    )
    narrow = replace(wide, name="loss_narrow", inches=(5.0, 3.4))
    return {"curve": wide, "wide": _svg(wide), "narrow": _svg(narrow), "lost": lost}


def _plots(lines: list[Line]) -> list[dict[str, Any]]:
    """The smaller plots, those that the run has numbers for."""
    waits = _data_wait(lines)
    wanted = [
        ("Gradient norm", lines, "gradient_norm", scientific, {"logarithmic": True}),
        (
            "Learning rate",
            lines,
            "learning_rate",
            scientific,
            {"smoothed": False, "from_zero": True},
        ),
        ("Tokens a second", lines, "tokens_per_second", count, {"from_zero": True}),
        ("Share of time waiting for data", waits, "data_wait", _percent, {"from_zero": True}),
        ("MFU", lines, "model_flops_utilization", _percent, {"from_zero": True}),
    ]
    plots = []
    for title, source, name, label, style in wanted:
        series, lost = _series(source, name)
        if len(series.value):
            curve = Curve(name=name, train=series, label=label, **style)
            median = label(float(np.median(series.value)))
            plots.append({"title": title, "svg": _svg(curve), "median": median, "lost": lost})
    return plots


def _goodput(lines: list[Line]) -> dict[str, Any] | None:
    """The bar of what the wall time went to: each part's name, percentage and time."""
    goodput = Goodput.of(lines)
    if goodput is None or not goodput.wall:
        return None
    lives = f"{goodput.lives} lives, {duration(goodput.between)} between them"
    return {
        "wall": duration(goodput.wall),
        "lives": lives if goodput.lives > 1 else "",
        "parts": [
            {"name": part, "share": share, "told": percent(share), "time": duration(seconds)}
            for (part, seconds), share in zip(
                goodput.parts.items(), goodput.shares.values(), strict=True
            )
            if share >= LEAST_SHARE
        ],
    }


def _svg(curve: Curve) -> Any:
    from markupsafe import Markup

    return Markup(draw(curve))


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _exact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.6g}"
