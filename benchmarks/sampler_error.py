"""Samplers ranked at equal stored bytes: bias and variance of a trained teacher's targets.

    python -m benchmarks.sampler_error RUN --student RUN --bytes 32 88 160 --write docs/ablations.md
    python -m benchmarks.sampler_error --power-law 1.3 --vocabulary 262144 --rows 4 --draws 4

For each sampler it finds how many candidates take a budget of bytes a token in a store, by encoding
them; then it draws the targets of held-out rows several times and holds what a store gives back of
them against the teacher's whole distribution. With a student, also what they make of its loss and
of its gradient.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from benchmarks.pages import markdown, replaced
from benchmarks.target_error import (
    KINDS,
    Lesson,
    Mean,
    mean,
    measured,
    nearest_size,
    power_law,
    ratio,
)
from gemma_train.config import read_record
from gemma_train.conversion.load import load_model
from gemma_train.data.pipeline import held_out_batches
from gemma_train.errors import UserError, require
from gemma_train.mesh import MeshConfig, start_runtime

SYNTHETIC_LENGTH = 128
Figures = dict[str, np.ndarray]


def lessons_of(run: str, student: str | None, rows: int) -> list[Lesson]:
    """Held-out rows of a run, spread evenly, with its logits; a batch at a time."""
    data, lessons = read_record(run).data, []
    teacher, pupil = load_model(run), load_model(student) if student else None
    table_vd = np.asarray(pupil.embedding.table[...]) if pupil else None
    require(
        pupil is None or pupil.config.final_soft_cap is None,
        f"student {student!r} caps its logits, which its gradient here leaves out: choose another",
    )
    with held_out_batches(data, batch_rows=min(8, rows), maximum_rows=rows) as stream:
        for batch in stream:
            inputs = batch.tokens_bt, batch.positions_bt, batch.segments_bt
            logits_btv = np.asarray(teacher.logits(*inputs))
            others = np.asarray(pupil.logits(*inputs)) if pupil else [None] * len(logits_btv)
            lessons += [
                Lesson(row=batch.row(index), logits_tv=one, student_tv=other, table_vd=table_vd)
                for index, (one, other) in enumerate(zip(logits_btv, others, strict=True))
                if batch.weights_bt[index].any()
            ]
    return lessons


def held_out_loss(lessons: list[Lesson], name: str = "logits_tv") -> float:
    """Nats a token of the rows' own text."""
    losses = []
    for lesson in lessons:
        logits_tv = np.asarray(getattr(lesson, name)[lesson.taught], np.float64)
        targets_t = lesson.row.targets[lesson.taught]
        own_t = logits_tv[np.arange(len(targets_t)), targets_t]
        losses.append(logsumexp(logits_tv, axis=1) - own_t)
    return float(np.concatenate(losses).mean())


def at_budget(lessons: list[Lesson], budget: float, draws: int) -> tuple[dict, int]:
    """({a sampler's name: (it, its figures)}, the rank beyond which mass is counted: topk's)."""
    samplers = {name: nearest_size(kind, lessons, budget) for name, kind in KINDS.items()}
    beyond, found = samplers["topk"].candidates, {}
    for name, sampler in samplers.items():
        print(f"{budget:g} B a token: {sampler}", file=sys.stderr, flush=True)
        found[name] = sampler, measured(lessons, sampler, draws=draws, beyond=beyond)
    return found, beyond


def page(found: dict, beyond: int, budget: float) -> str:
    """The tables of one budget."""
    head = ("sampler", "candidates", "B a token", "distinct ids", "squared error", "of it bias")
    head += ("of it variance", "error / `priority`'s", "error as drawn", "bias of the top token")
    head += (f"bias of the mass beyond rank {beyond}",)
    priority = found["priority"][1]
    targets = [_target_row(name, of[0], of[1], priority) for name, of in found.items()]
    parts = [f"**{budget:g} B a token.** The targets:", markdown(head, targets)]
    if "loss bias" in priority:
        head = ("sampler", "bias of a token's loss (nats)", "variance of it")
        head += ("squared error of the gradient", "of it bias", "of it variance")
        head += ("error / `priority`'s",)
        rows = [_student_row(name, of[1], priority) for name, of in found.items()]
        parts += ["A student's loss, and its gradient with respect to the final states:"]
        parts += [markdown(head, rows)]
    return "\n\n".join(parts)


def _target_row(name: str, sampler, figures: Figures, priority: Figures) -> tuple[str, ...]:
    return (
        f"`{name}`",
        str(sampler.candidates),
        f"{figures['bytes'].mean():.1f}",
        f"{figures['distinct'].mean():.1f}",
        *(power(mean(figures[f"stored {name}"])) for name in ("error", "bias", "variance")),
        times(ratio(figures["stored error"], priority["stored error"])),
        power(mean(figures["error"])),
        signed(mean(figures["stored top"])),
        signed(mean(figures["stored beyond"])),
    )


def _student_row(name: str, figures: Figures, priority: Figures) -> tuple[str, ...]:
    columns = [f"stored gradient {name}" for name in ("error", "bias", "variance")]
    return (
        f"`{name}`",
        signed(mean(figures["stored loss bias"])),
        power(mean(figures["stored loss variance"])),
        *(power(mean(figures[column])) for column in columns),
        times(ratio(figures["stored gradient error"], priority["stored gradient error"])),
    )


def power(of: Mean) -> str:
    """As in 2.2e-4 ± 0.1e-4: both to the same power of ten."""
    if abs(of.value) < 1e-12 and of.error < 1e-12:
        return "0"
    exponent = int(np.floor(np.log10(max(abs(of.value), of.error))))
    value, error = of.value / 10.0**exponent, of.error / 10.0**exponent
    return f"({value:.2f} ± {error:.2f})e{exponent}"


def signed(of: Mean) -> str:
    """As in +0.0430 ± 0.0021."""
    return f"{of.value:+.4f} ± {of.error:.4f}"


def times(of: Mean) -> str:
    """As in 2.4 ± 0.1."""
    return f"{of.value:.2f} ± {of.error:.2f}" if of.error else f"{of.value:.0f}"


def main() -> None:
    """Print the tables, and put them into a page if asked."""
    arguments = _arguments()
    start_runtime(MeshConfig())
    if arguments.power_law:
        exponent, vocabulary = arguments.power_law, arguments.vocabulary
        lessons = power_law(
            exponent, vocabulary=vocabulary, rows=arguments.rows, length=SYNTHETIC_LENGTH
        )
        told = f"Synthetic teacher: p ~ rank^-{exponent:g} over {vocabulary:,} ids in random order"
    else:
        lessons = lessons_of(arguments.run, arguments.student, arguments.rows)
        told = (
            f"Teacher: `{arguments.run}`, held-out loss {held_out_loss(lessons):.4f} nats a token"
        )
        if arguments.student:
            loss = held_out_loss(lessons, "student_tv")
            told += f"; student: `{arguments.student}`, {loss:.4f}"
    tokens = sum(int(lesson.taught.sum()) for lesson in lessons)
    told += f"; {tokens:,} positions of {len(lessons)} rows, {arguments.draws} draws of each"
    parts = [f"{told}. ± is the standard error over rows."]
    parts += [page(*at_budget(lessons, size, arguments.draws), size) for size in arguments.bytes]
    table = "\n\n".join(parts)
    print(table)
    if arguments.write:
        name = "sampler error" + (", power law" if arguments.power_law else "")
        arguments.write.write_text(replaced(arguments.write.read_text(), name, table))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Samplers ranked at equal stored bytes.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of the teacher's run")
    parser.add_argument("--student", metavar="RUN", help="of whose loss and gradient to tell")
    parser.add_argument("--power-law", type=float, help="exponent of a synthetic teacher instead")
    parser.add_argument("--vocabulary", type=int, default=262_144, help="of the synthetic teacher")
    parser.add_argument("--rows", type=int, default=32, help="held-out rows")
    parser.add_argument("--draws", type=int, default=16, help="independent draws of each")
    parser.add_argument("--bytes", type=float, nargs="+", default=[64.0], help="a token")
    parser.add_argument("--write", type=Path, help="page that holds the tables")
    arguments = parser.parse_args()
    if bool(arguments.run) == bool(arguments.power_law):
        parser.error("name the folder of a run, or give --power-law")
    if arguments.rows < 2 or arguments.draws < 2:
        parser.error("--rows and --draws must be at least 2")
    return arguments


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
