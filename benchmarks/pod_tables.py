"""The tables of docs/pods.md, as Markdown, from what `benchmarks/pod_compile.py` found."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.pages import markdown
from benchmarks.pod_cases import (
    ALL_GATHER_LIMIT,
    ALL_REDUCE_LIMIT,
    CASES,
    REDUCE_SCATTER_LIMIT,
    Figures,
)
from gemma_train.config import load
from gemma_train.metrics.wording import byte_count, count, duration, moment
from gemma_train.planning.attention_traffic import attention_traffic

GB = 1e9
Result = dict[str, Any]


def cases(results: Iterable[Result]) -> str:
    """Ours beside MaxText's and the sketch's, each figure with its limit where it has one."""
    head = ("case", "of one chip", "MaxText", "sketch", "ours", "ours / MaxText", "limit", "")
    rows = [row for result in results for row in _case(result)]
    return markdown(head, rows) + _origin(results)


def _case(result: Result) -> list[tuple[str, ...]]:
    name, step = result["name"], result["step"]
    case = CASES[name]
    title = f"{name}: {case.title}" + (f", {result['layers']} layers" if result["layers"] else "")
    if step is None:
        return [(title, "peak", "", "", "does not fit", "", "", "over")]
    ours, weights = _figures(step), 2 * step["parameters"] / GB
    gathers = case.all_gather_limit or ALL_GATHER_LIMIT * weights
    rows = [
        (title, "peak", "peak", case.peak_limit),
        ("", "all-gather", "all_gather", gathers),
        ("", "gradients, reduce-scatter", "reduce_scatter", REDUCE_SCATTER_LIMIT * weights),
        ("", "gradients, all-reduce", "all_reduce", None),
    ]
    table = [
        _compared(
            title, what, [getattr(of, field) for of in (case.maxtext, case.sketch, ours)], limit
        )
        for title, what, field, limit in rows
    ]
    summed = _gate(step, "all-reduces of a step") / GB
    limit = ALL_REDUCE_LIMIT * weights
    table.append(
        ("", "of these in scans", "", "", _gb(summed), "", _gb(limit), _verdict(summed, limit))
    )
    table.append(("", "bf16 weights, once", "", "", _gb(weights), "", "", ""))
    return table


def failures(result: Result) -> list[str]:
    """A line for every limit that a case is over and for every gate that it fails."""
    name, step = result["name"], result["step"]
    if step is None:
        return [f"{name}: does not fit"]
    over = [
        f"{name}: {what} is {ours} GB, at most {limit}"
        for _, what, _, _, ours, _, limit, verdict in _case(result)
        if verdict == "over"
    ]
    return over + [f"{name}: {gate['told']}" for gate in step["gates"] if not gate["holds"]]


def _compared(
    title: str, what: str, figures: Sequence[float], limit: float | None
) -> tuple[str, ...]:
    maxtext, sketch, ours = figures
    ratio = f"{ours / maxtext:.2f}" if maxtext else ""
    given = (_gb(limit), _verdict(ours, limit)) if limit else ("", "")
    return (title, what, _gb(maxtext), _gb(sketch), _gb(ours), ratio, *given)


def lean(results: Iterable[Result]) -> str:
    """The policy of least recomputation that fits 90 % of a chip, without and with the host."""
    head = ("case", "host", "policy", "peak GB", "of HBM", "recomputed", "on the host")
    head += ("step, estimated", "compiled")
    return markdown(head, map(_lean, results)) + _origin(results)


def _lean(result: Result) -> tuple[str, ...]:
    step, host = result["step"], "yes" if result["kind"] == "lean_offload" else "no"
    if step is None:
        return (result["name"], host, "none fits", *[""] * 5, str(result["tried"]))
    policy = [step["remat"], *step["saved"], *(f"{name} (host)" for name in step["offloaded"])]
    failed = f", {len(result['failed'])} failed" if result["failed"] else ""
    return (
        result["name"],
        host,
        ", ".join(policy),
        _gb(step["peak_bytes"] / GB),
        f"{step['peak_bytes'] / step['hbm_bytes']:.0%}",
        f"{step['recomputed']:.1%}",
        byte_count(step["offloaded_bytes"]) if step["offloaded"] else "",
        moment(step["step_seconds"]),
        str(result["tried"]) + failed,
    )


def table_2(results: Iterable[Result]) -> str:
    """The runs of the report: what a chip holds, and how long a step would take."""
    head = ("run", "chips", "replica x data x seq", "peak GB", "of HBM", "gates")
    head += ("step, estimated", "MFU, estimated", "run", "compiled in", "process GB")
    return markdown(head, map(_run, results)) + _origin(results)


def _run(result: Result) -> tuple[str, ...]:
    step, process = result["step"], f"{result['process_bytes'] / GB:.1f}"
    if step is None:
        return (result["name"], "", "", "does not fit", *[""] * 6, process)
    slices = f"{step['slices']} x {step['topology']}" if step["slices"] > 1 else step["topology"]
    mesh = step["mesh"]
    failed = [gate["told"] for gate in step["gates"] if not gate["holds"]]
    data = mesh["data_major"] * mesh["data_minor"]
    return (
        result["name"],
        f"{step['chips']:,}, {slices}",
        f"{mesh['replica']} x {data} x {mesh['seq']}",
        _gb(step["peak_bytes"] / GB),
        f"{step['peak_bytes'] / step['hbm_bytes']:.0%}",
        "; ".join(failed) or "hold",
        moment(step["step_seconds"]),
        f"{step['mfu']:.0%}",
        duration(step["run_seconds"]),
        duration(step["compile_seconds"]),
        process,
    )


def attention(names: Iterable[str]) -> str:
    """What attention sends along seq in a step of each run, counted, not compiled."""
    head = ("run", "tokens of a row", "of a shard", "sent by a chip", "every layer gathering")
    head += ("ratio", "busiest shard / mean")
    rows = []
    for name in names:
        config = load(f"configs/{name}.py")
        found, length = attention_traffic(config), config.data.sequence_length
        sizes = (found.sent_bytes, found.everything_bytes)
        rows.append(
            (
                name,
                f"{length:,}",
                f"{length // config.mesh.seq:,}",
                *map(byte_count, sizes),
                f"{sizes[0] / sizes[1]:.2f}",
                f"{found.busiest:.2f}",
            )
        )
    return markdown(head, rows)


def collectives(results: Iterable[Result]) -> str:
    """What a step of each run moves."""
    head = ("run", "collective", "network", "where", "times", "of tensors", "sent by a chip")
    rows = []
    for result in filter(lambda result: result["step"], results):
        for total in result["step"]["collectives"]:
            if total["step_bytes"] >= 1e6:
                names = ("kind", "network", "place")
                sizes = (byte_count(total[name]) for name in ("step_bytes", "step_wire_bytes"))
                words = (total[name] for name in names)
                rows.append((result["name"], *words, count(total["executions"]), *sizes))
    return markdown(head, rows) + _origin(results)


def _figures(step: Result) -> Figures:
    def moved(kind: str) -> float:
        return sum(one["step_bytes"] for one in step["collectives"] if one["kind"] == kind) / GB

    return Figures(
        peak=step["peak_bytes"] / GB,
        all_gather=moved("all-gather"),
        reduce_scatter=moved("reduce-scatter"),
        all_reduce=moved("all-reduce"),
    )


def _gate(step: Result, name: str) -> float:
    return next(gate["found_bytes"] for gate in step["gates"] if gate["name"] == name)


def _verdict(ours: float, limit: float) -> str:
    return "OK" if ours <= limit else "over"


def _gb(size: float) -> str:
    return f"{size:.2f}" if size < 10 else f"{size:.1f}"


def _origin(results: Iterable[Result]) -> str:
    """A line below a table: what made its figures."""
    made = {
        (result["versions"]["jax"], result["versions"]["libtpu"], result["commit"])
        for result in results
    }
    told = "; ".join(
        f"jax {jax}, libtpu {libtpu}, commit {commit}" for jax, libtpu, commit in sorted(made)
    )
    return f"\n\n{told}. GB are 10^9 bytes."
