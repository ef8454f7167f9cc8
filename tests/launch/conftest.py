"""Fake gcloud, kubectl and git: they record what they are told and answer from a script."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """#!{python} -IS
import json, os, sys
from pathlib import Path

here = Path(__file__).parent
words = [Path(__file__).name, *sys.argv[1:]]
files = [Path(word) for word in words if word.endswith("worker.env") and os.path.exists(word)]
call = dict(
    words=words,
    stdin=sys.stdin.read(),
    private={{str(f): [oct(f.stat().st_mode & 0o777), f.read_text()] for f in files}},
)
with open(here / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(call) + "\\n")
answers = json.loads((here / "answers.json").read_text())
for part, replies in answers:
    if part in " ".join(words):
        out, error, code = replies.pop(0) if len(replies) > 1 else replies[0]
        (here / "answers.json").write_text(json.dumps(answers))
        sys.stdout.buffer.write(out.encode(errors="surrogateescape"))
        print(error, end="", file=sys.stderr)
        sys.exit(code)
"""


class Cloud:
    """What the fakes were told, and what they are to say."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._answers: list = []
        for name in ("gcloud", "kubectl", "git"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable))
            (folder / name).chmod(0o755)
        self._write()

    def answers(self, part: str, *replies: str | tuple[str, str, int]) -> None:
        """Calls that hold `part` get the replies one after the other, the last one ever after."""
        full = [(reply, "", 0) if isinstance(reply, str) else reply for reply in replies]
        self._answers.append([part, full])
        self._write()

    def _write(self) -> None:
        (self.folder / "answers.json").write_text(json.dumps(self._answers))

    @property
    def calls(self) -> list[dict]:
        """All but the question to git whether the source is there, which changes nothing."""
        file = self.folder / "calls.jsonl"
        told = file.read_text().splitlines() if file.exists() else []
        calls = [json.loads(line) for line in told]
        return [call for call in calls if call["words"][:2] != ["git", "cat-file"]]

    @property
    def lines(self) -> list[str]:
        """The calls as a shell would read them."""
        return [shlex.join(call["words"]) for call in self.calls]


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Cloud:
    """The fakes alone on the PATH, in a folder that looks like the repository."""
    (tmp_path / "bin").mkdir()
    for name in ("configs", "launch", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CLOUDSDK_CORE_PROJECT", raising=False)
    return Cloud(tmp_path / "bin")


@pytest.fixture
def bash(cloud, monkeypatch):
    """The system's programs behind the fakes."""
    monkeypatch.setenv("PATH", f"{cloud.folder}{os.pathsep}{os.defpath}")
