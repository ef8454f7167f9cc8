"""The benchmark of pods: which results it goes on from, and when it ends with a failure."""

import json

import pytest

from benchmarks import pod_compile, pod_tables
from benchmarks.pod_compile import Kept, Task

TASK = Task(kind="plan", name="A", layers=None)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Makes the result of a task with one kept of a commit, at another."""

    def make(kept_of: str, now: str) -> str:
        file = tmp_path / "kept.jsonl"
        file.write_text(json.dumps(vars(TASK) | {"commit": kept_of, "from": "kept"}) + "\n")
        monkeypatch.setattr(pod_compile, "commit", lambda: now)
        made = vars(TASK) | {"commit": now, "from": "made"}
        monkeypatch.setattr(Task, "run_apart", lambda task: made)
        return Kept(file).of(TASK)["from"]

    return make


def test_results_of_this_commit_are_kept_and_no_others(kept, capsys):
    assert kept("abc", "abc") == "kept"
    assert kept("abc", "abd") == "made"
    assert "of another commit: compiled anew" in capsys.readouterr().out
    assert kept("abc-dirty", "abc-dirty") == "made"


def step(peak: float, gate_holds: bool) -> dict:
    gate = {
        "name": "all-reduces of a step",
        "found_bytes": 0,
        "told": "too many",
        "holds": gate_holds,
    }
    return {"parameters": 4e9, "peak_bytes": peak, "collectives": [], "gates": [gate]}


def test_a_limit_that_is_over_and_a_gate_that_fails_are_failures():
    def failures(found) -> list[str]:
        return pod_tables.failures({"name": "A", "layers": None, "step": found})

    assert failures(step(3.4e9, True)) == []
    assert failures(step(3.6e9, True)) == ["A: peak is 3.60 GB, at most 3.50"]
    assert failures(step(3.4e9, False)) == ["A: too many"]
    assert failures(None) == ["A: does not fit"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["A", "--layers", "0"], "model.layers is 0: it must be at least 1"),
        (["A", "--layers", "few"], "argument --layers: invalid int value: 'few'"),
        (["E"], "case E: choose from A, B, C, D"),
        (["A", "--write", "no/page.md"], "write is 'no/page.md': name a page that is there"),
        (["A", "--keep", "no/kept"], "keep is 'no/kept': name a file in a folder that is there"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_compiled(words, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pod_compile", *words])
    monkeypatch.setattr(Task, "run_apart", lambda task: pytest.fail("it compiles"))
    with pytest.raises(SystemExit) as ended:
        pod_compile.main()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"pod_compile: {told}\n")
