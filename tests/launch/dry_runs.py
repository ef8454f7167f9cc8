"""The dry runs of all verbs, as the golden files hold them: `python -m tests.launch.dry_runs`."""

import contextlib
import io
from pathlib import Path

from launch.__main__ import main

GOLDEN = Path("tests/launch/golden")
ROWS = [f"launch/gemma3_{size}.py" for size in ("1b", "4b", "12b", "27b")]
EXAMPLES = [f"tests/launch/examples/{name}.py" for name in ("group", "gke", "pathways")]
VERBS = ("create", "setup", "run", "status", "logs", "stop", "delete")
FILLED = ("--project", "my-project", "--folder", "gs://my-bucket/gemma")


def dry_run(verb: str, file: str) -> str:
    """What `--dry-run` prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main([verb, file, *FILLED, "--dry-run"]) == 0
    return told.getvalue()


def golden(file: str) -> Path:
    return GOLDEN / f"{Path(file).stem}.txt"


def transcript(file: str) -> str:
    """All verbs of a launch file."""
    return "".join(f"# {verb}\n{dry_run(verb, file)}\n" for verb in VERBS)


if __name__ == "__main__":
    for name in ROWS + EXAMPLES:
        golden(name).write_text(transcript(name))
