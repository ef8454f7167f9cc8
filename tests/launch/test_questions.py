"""A question that fails, or is answered with nonsense: an answer not had, never an end."""

import json

import pytest

from launch.__main__ import main
from tests.launch.dry_runs import EXAMPLES, FILLED

TPU_VM = "launch/gemma3_27b.py"
GROUP, GKE = EXAMPLES[:2]
POOLS = [{"name": f"gemma3-4b-{number}", "status": "RUNNING"} for number in range(8)]
READY = {
    "queued-resources describe": json.dumps({"state": {"state": "ACTIVE"}}),
    "list-instances gemma3-27b --format=json": json.dumps([{"instanceStatus": "RUNNING"}] * 1536),
    "value(name)": "one\n",
    "node-pools list": json.dumps(POOLS),
}
QUESTIONS = [
    (TPU_VM, "queued-resources describe", "machines unknown"),
    (TPU_VM, "worker.sh status", "gemma-train unreachable"),
    (GROUP, "list-instances gemma3-27b --format=json", "machines unknown"),
    (GROUP, "value(name)", "gemma-train unreachable"),
    (GROUP, "worker.sh status", "gemma-train unreachable"),
    (GKE, "node-pools list", "machines unknown"),
    (GKE, "get jobset", "gemma-train unreachable"),
]
FAILURES = {
    "503": ("", "ERROR: (gcloud) The service is currently unavailable.", 1),
    "killed": ("", "", 137),
    "nothing": "",
}
NONSENSE = ["<html>503</html>", "{", "null", "7", '["word"]', '{"spec": 7}', "\udcff\udcfe"]


@pytest.mark.parametrize(("file", "question", "seen"), QUESTIONS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_question_that_fails_is_not_answered(cloud, capsys, file, question, seen, failure):
    cloud.answers(question, FAILURES[failure])
    assert seen in status(cloud, capsys, file)


@pytest.mark.parametrize(
    ("file", "question", "seen"), [row for row in QUESTIONS if row[1] != "value(name)"]
)
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_no_answer(cloud, capsys, file, question, seen, nonsense):
    cloud.answers(question, nonsense)
    assert seen in status(cloud, capsys, file)


def status(cloud, capsys, file: str) -> str:
    """What is told of a fleet that is ready but for what was scripted before."""
    for question, answer in READY.items():
        cloud.answers(question, answer)
    assert main(["status", file, *FILLED]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("Warning: Identity file id_rsa not accessible: No such file or directory.", 255),
        ("bash: worker.sh: No such file or directory", 255),
        ("cat: pid: No such file or directory", 1),
        ("ssh: No such file or directory", 127),
    ],
)
@pytest.mark.parametrize("file", [TPU_VM, GROUP])
def test_only_bash_s_own_word_tells_that_worker_sh_is_missing(cloud, capsys, file, error, code):
    cloud.answers("worker.sh status", ("", error, code))
    assert "gemma-train unreachable" in status(cloud, capsys, file)
