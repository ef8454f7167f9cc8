"""A plan as lines of aligned text: headings at the margin, figures below them."""

import textwrap
from collections.abc import Sequence

from gemma_train.metrics.wording import byte_count, count, duration, moment
from gemma_train.model.config import ComputeConfig
from gemma_train.model.flops import parameter_count
from gemma_train.planning.collectives import Total
from gemma_train.planning.lean_remat import HBM_SHARE, MOST_TRIED, Found
from gemma_train.planning.plan import Memory, Plan, assumptions
from gemma_train.teachers.online import teacher_model

BAR = 32
WIDTH = 94
NO_CHANGE = "no one or two changes of the config would do: take more chips, or larger ones"
PEAK_SAYS = {
    "compiled": "the TPU compiler's",
    "refused": "the TPU compiler refuses it",
    "modelled": "modelled, not compiled",
}


def told(plan: Plan) -> list[str]:
    """The page below its head: sections, each after an empty line."""
    sections = [
        _section("Memory of a chip", _memory(plan.memory), note=_peak_note(plan)),
        *([_section("To make it fit (estimates)", _changes(plan))] if not plan.memory.fits else []),
        _section(*_collectives(plan)),
        _section("Gates of the compiled program", _gates(plan)),
        _section("A step (an estimate)", _time(plan)),
        _section("The run (an estimate)", _run(plan)),
        _section("Assumed", [row for line in assumptions(plan) for row in _item(line)]),
    ]
    return [line for section in sections for line in ["", *section]]


def head(plan: Plan) -> list[str]:
    """What is planned."""
    config, mesh, slices = plan.config, plan.config.mesh, plan.slices
    pod = slices.name if slices.count == 1 else f"{slices.count} x {slices.name}"
    teacher = teacher_model(config)
    lines = [
        f"{plan.name}: {count(plan.parameters)} parameters on {slices.chips:,} "
        f"{'chip' if slices.chips == 1 else 'chips'}, {pod}",
        f"  mesh    replica {mesh.replica} x data {mesh.data} x seq {mesh.seq}",
        f"  step    {config.data.batch_rows:,} rows of {config.data.sequence_length:,} = "
        f"{config.step_tokens:,} tokens"
        + (f" in {config.accumulation} microbatches" if config.accumulation > 1 else ""),
        f"  run     {config.steps:,} steps = {count(plan.tokens)} tokens",
    ]
    if teacher is not None:
        size = count(parameter_count(teacher))
        lines.append(f"  teacher {size} parameters, in the step: it runs forward on every token")
    return lines


def trial(number: int, compute: ComputeConfig) -> str:
    """Which policy of a search is tried, in few words: `lean_remat` tells the one that is found."""
    kept = f"{len(compute.kept)} products kept"
    if compute.remat == "full":
        kept = "nothing kept"
    elif compute.offloaded:
        kept += f", {len(compute.offloaded)} of them on the host"
    return f"policy {number} of at most {MOST_TRIED}: {kept}"


def lean_remat(found: Found) -> list[str]:
    """The policy that was found, as the flags that a config or a command line takes."""
    failed = [
        f"  passed  {_policy(one.compute)}: the compiler failed, {one.message}"
        for one in found.failed
    ]
    if not found.fits:
        return [
            *failed,
            "  lean    no policy does: what follows is of --compute.remat full, which takes more "
            f"than {HBM_SHARE:.0%} of the chip's HBM",
        ]
    return [
        *failed,
        f"  lean    {_policy(found.config.compute)}",
        f"          repeats the fewest FLOPs within {HBM_SHARE:.0%} of the chip's HBM "
        f"({found.tried} policies compiled)",
    ]


def _policy(compute: ComputeConfig) -> str:
    """The remat policy as flags."""
    lists = {"saved": compute.saved, "offloaded": compute.offloaded}
    flags = [f"--compute.{name} {' '.join(kept)}" for name, kept in lists.items() if kept]
    if compute.remat == "full":
        flags = []
    return f"--compute.remat {' '.join([compute.remat, *flags])}"


def refusal(plan: Plan) -> str:
    """In one line, that it does not fit, by how much, and what would do."""
    least = "at least " if plan.memory.source == "refused" else ""
    over = byte_count(max(plan.memory.over_bytes, 0))
    chip = f"{byte_count(plan.memory.usable_bytes)} of a {plan.slices.chip.generation} chip"
    flags = " or ".join(change.flags for change in plan.changes)
    would = f"{flags} would do, by estimate" if flags else NO_CHANGE
    return f"the step does not fit the {chip}: {least}{over} too much: {would}"


def failed_gates(plan: Plan) -> str:
    """In one line, which gates the compiled program fails, or that it cannot be read for them.

    "" where all hold, and where nothing was compiled.
    """
    if plan.unread:
        return "no gate was checked: the compiled step could not be read with this libtpu"
    found = plan.gates or []
    failed = [gate.name for gate in found if not gate.holds]
    if not failed:
        return ""
    return (
        f"the compiled step fails {len(failed)} of {len(found)} gates: {'; '.join(failed)}: "
        "docs/pods.md says what each is there for"
    )


def _peak_note(plan: Plan) -> str:
    says = PEAK_SAYS[plan.memory.source]
    return f"{says}, {duration(plan.compile_seconds)}" if plan.compile_seconds else says


def _memory(found: Memory) -> list[str]:
    least = "at least " if found.source == "refused" else ""
    rows = [
        ("parameters", byte_count(found.state.parameters)),
        ("moments", byte_count(found.state.moments)),
        ("gradients", byte_count(found.state.gradients)),
        *([("teacher", byte_count(found.state.teacher))] if found.state.teacher else []),
        ("activations and gathered weights", least + byte_count(found.activation_bytes)),
        (
            "peak",
            f"{least}{byte_count(found.peak_bytes)} of {byte_count(found.usable_bytes)}  "
            f"{bar(found.peak_bytes / found.usable_bytes)}",
        ),
    ]
    lines = _aligned(rows)
    if not found.fits:
        over = byte_count(max(found.over_bytes, 0))
        lines.append(f"does not fit: {least}{over} too much")
    return lines


def _changes(plan: Plan) -> list[str]:
    if not plan.changes:
        return [NO_CHANGE]
    return [
        line
        for change in plan.changes
        for line in (
            change.flags,
            f"    {byte_count(change.peak_bytes)} at its peak, {change.extra_flops:+.0%} FLOPs: "
            f"{change.remark}",
        )
    ]


def _collectives(plan: Plan) -> tuple[str, list[str]]:
    title = "Collectives of a step, per chip"
    if plan.collectives is None:
        traffic = plan.traffic
        why = "could not be read with this libtpu" if plan.unread else "not compiled"
        return title, [
            f"{why}; expected of the design: "
            f"{byte_count(traffic.ici_bytes)} sent within slices, "
            f"{byte_count(traffic.dcn_bytes)} between them",
            *_along_seq(plan),
        ]
    heads = ("", "network", "where", "times", "of tensors", "sent")
    return title, [*_columns([heads, *map(_row, plan.collectives)]), *_along_seq(plan)]


def _along_seq(plan: Plan) -> list[str]:
    """What attention sends of it, by the design, where sequences are split."""
    if plan.config.mesh.seq == 1:
        return []
    found = plan.attention
    return [
        f"of these by design for attention along seq: {byte_count(found.sent_bytes)}, "
        f"{found.sent_bytes / found.everything_bytes:.2f} of every layer gathering its keys"
    ]


def _row(total: Total) -> tuple[str, ...]:
    return (
        total.kind,
        total.network.upper(),
        total.place,
        f"{total.executions:,}",
        byte_count(total.step_bytes),
        byte_count(total.step_wire_bytes),
    )


def _gates(plan: Plan) -> list[str]:
    """Those that the program fails; when none, that all hold, or that none was checked."""
    if plan.gates is None:
        return ["not checked: " + ("not read" if plan.unread else "not compiled")]
    found = plan.gates
    failed = [f"fails: {gate.told}" for gate in found if not gate.holds]
    return failed or [f"all {len(found)} hold: {', '.join(gate.name for gate in found)}"]


def _time(plan: Plan) -> list[str]:
    found = plan.estimate
    seconds = {name: spent for name, spent in found.resources.items() if spent}
    longest = max(found.step_seconds, *seconds.values())
    rows = [
        (name, f"{moment(spent):>8}  {bar(spent / longest)}") for name, spent in seconds.items()
    ]
    rows.append(("step", f"{moment(found.step_seconds):>8}  {bar(found.step_seconds / longest)}"))
    taught = plan.teacher_flops_per_token
    speed = plan.config.step_tokens / found.step_seconds
    return [
        *_aligned(rows),
        f"bound by {found.bound} · MFU {found.mfu:.1%} · {count(speed)} tokens/s",
        f"{plan.flops_per_token / 1e9:,.3g} GFLOPs of the model a token, local windows counted as "
        f"such; {plan.recomputed_flops_per_token / 1e9:,.3g} recomputed"
        + (f"; {taught / 1e9:,.3g} of the teacher, forward" if taught else ""),
    ]


def _run(plan: Plan) -> list[str]:
    spent = plan.cost
    rows = [
        ("time", duration(spent.seconds)),
        ("chip-hours", f"{spent.chip_hours:,.0f}"),
        ("energy", thousands(spent.kilowatt_hours, "kWh", "MWh")),
        ("carbon", thousands(spent.kilograms_co2, "kg CO2", "t CO2")),
    ]
    if spent.money is not None:
        rows.append(("money", f"{spent.money:,.0f} at {plan.cost_inputs.price:g} a chip-hour"))
    return _aligned(rows)


def thousands(amount: float, unit: str, of_thousand: str) -> str:
    """An amount in four digits, in the unit that keeps it readable."""
    return f"{amount:,.4g} {unit}" if amount < 9999 else f"{round(amount / 1000):,} {of_thousand}"


def bar(share: float, width: int = BAR) -> str:
    """A share (0 to 1) drawn in eighths of a character; what is above 1 overflows its frame."""
    eighths = round(max(share, 0.0) * 8 * width)
    if eighths > 8 * width:
        return f"{'█' * width}▶ {share:.0%}"
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + ("", *"▏▎▍▌▋▊▉")[rest]
    return f"{drawn}{'·' * (width - len(drawn))} {share:.0%}"


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _section(title: str, lines: Sequence[str], note: str = "") -> list[str]:
    return [f"{title}, {note}" if note else title, *(f"  {line}" for line in lines)]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}".rstrip() for name, value in rows]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table: words to the left, figures (from the fourth column) to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:{'>' if i >= 3 else '<'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
