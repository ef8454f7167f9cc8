"""The benchmark of samplers: its arithmetic on a small synthetic teacher, whose p is known."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import sampler_error
from benchmarks.target_error import drawn, mean, measured, nearest_size, power_law, stored
from gemma_train.samplers import Counts, Priority, TopK

VOCABULARY, WIDTH, BUDGET, BEYOND = 512, 8, 48.0, 20
P = np.arange(1, VOCABULARY + 1.0) ** -1.3
P /= P.sum()


@pytest.fixture(scope="module")
def lessons():
    """Rows of the teacher, with a student that knows nothing."""
    random = np.random.default_rng(1)
    table_vd = np.float32(random.normal(size=(VOCABULARY, WIDTH)))
    return [
        replace(
            lesson,
            student_tv=np.float32(random.normal(size=lesson.logits_tv.shape)),
            table_vd=table_vd,
        )
        for lesson in power_law(1.3, vocabulary=VOCABULARY, rows=8, length=16)
    ]


@pytest.fixture(scope="module")
def found(lessons):
    """{kind: (the sampler of the budget, its figures)}."""
    kinds = TopK, Counts, Priority
    samplers = {kind: nearest_size(kind, lessons, BUDGET) for kind in kinds}
    return {
        kind: (sampler, measured(lessons, sampler, draws=16, beyond=BEYOND))
        for kind, sampler in samplers.items()
    }


def test_the_nearest_size_is_nearer_than_its_neighbours(found, lessons):
    def distance(sampler, change: int) -> float:
        other = type(sampler)(candidates=sampler.candidates + change)
        sizes = [
            stored(lesson, other, drawn(lesson, other, number, draws=1))[1]
            for number, lesson in enumerate(lessons)
        ]
        return abs(np.mean(sizes) - BUDGET)

    for sampler, figures in found.values():
        assert distance(sampler, 0) <= min(distance(sampler, -1), distance(sampler, 1))
        assert abs(figures["bytes"].mean() - BUDGET) < 1.0


@pytest.mark.parametrize("kind", [Counts, Priority])
def test_counts_and_priority_have_no_bias(found, kind):
    figures = found[kind][1]
    for name in ("bias", "top", "beyond", "loss bias", "gradient bias"):
        for of in (name, f"stored {name}"):
            value, error = mean(figures[of])
            assert abs(value) < 4 * error, of


def test_the_bias_of_topk_is_its_closed_form(found):
    sampler, figures = found[TopK]
    mass = P[: sampler.candidates].sum()
    target = np.where(np.arange(VOCABULARY) < sampler.candidates, P / mass, 0)
    np.testing.assert_allclose(figures["bias"], ((target - P) ** 2).sum(), rtol=1e-4)
    np.testing.assert_allclose(figures["top"], target[0] - P[0], rtol=1e-4)
    np.testing.assert_allclose(figures["beyond"], (target - P)[BEYOND:].sum(), rtol=1e-4, atol=1e-6)
    assert (np.abs(figures["variance"]) < 1e-12).all()


def test_the_variance_of_counts_is_its_closed_form(found):
    sampler, figures = found[Counts]
    value, error = mean(figures["variance"])
    assert abs(value - (1 - (P**2).sum()) / sampler.candidates) < 4 * error
    distinct, error = mean(figures["distinct"])
    assert abs(distinct - (1 - (1 - P) ** sampler.candidates).sum()) < 4 * error


def test_a_students_loss_and_gradient_are_those_of_the_sum_of_its_targets(found, lessons):
    """topk's, written out: its target is one and the same at every draw."""
    sampler, figures = found[TopK]
    lesson = lessons[0]
    losses, gradients = [], []
    for logits_v, student_v in zip(lesson.logits_tv, lesson.student_tv, strict=True):
        p = np.exp(np.float64(logits_v) - np.log(np.exp(np.float64(logits_v)).sum()))
        kept = p >= np.sort(p)[-sampler.candidates]
        error = np.where(kept, p / p[kept].sum(), 0) - p
        losses.append(-error @ np.float64(student_v))
        gradients.append(((error @ np.float64(lesson.table_vd)) ** 2).sum())
    np.testing.assert_allclose(figures["loss bias"][0], np.mean(losses), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(figures["gradient bias"][0], np.mean(gradients), rtol=1e-3)


@pytest.mark.parametrize("power", [1.3, 2.0])
def test_priority_varies_less_than_counts_at_equal_bytes(power):
    """As stored; however sure the teacher is."""
    lessons = power_law(power, vocabulary=VOCABULARY, rows=8, length=16)
    samplers = [nearest_size(kind, lessons, BUDGET) for kind in (Priority, Counts)]
    priority, counts = (
        measured(lessons, sampler, draws=16, beyond=BEYOND)["stored variance"]
        for sampler in samplers
    )
    assert mean(priority).value + 4 * mean(priority).error < mean(counts).value


def test_a_store_gives_back_nearly_the_same_targets(found):
    for kind, (_, figures) in found.items():
        error, back = figures["error"], figures["stored error"]
        np.testing.assert_allclose(back, error, rtol=0.1, err_msg=str(kind))


def test_the_tables_go_into_a_page(found, lessons, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- sampler error -->\nold\n<!-- end of sampler error -->\nafter\n")
    words = ["runs/mine", "--student", "runs/other", "--bytes", "48", "--write", str(page)]
    monkeypatch.setattr(sys, "argv", ["sampler_error", *words])
    monkeypatch.setattr(sampler_error, "lessons_of", lambda *_: lessons)
    named = {kind.__name__.lower(): figures for kind, figures in found.items()}
    monkeypatch.setattr(sampler_error, "at_budget", lambda *_: (named, BEYOND))
    sampler_error.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(text.count(f"| `{name}` |") == 2 for name in named)
    assert f"| `priority` | {found[Priority][0].candidates} |" in text
    assert "beyond rank 20" in text and "128 positions of 8 rows" in text
    assert text.split("before")[1].split("<!-- end")[0].strip().endswith("| 1 |")
    assert "**48 B a token.**" in capsys.readouterr().out
