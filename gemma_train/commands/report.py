"""`gemma-train report RUN`: one web page of a run, to read offline and to pass on."""

from dataclasses import dataclass

from gemma_train import storage
from gemma_train.metrics import report
from gemma_train.run_files import REPORT


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Which run, and where its page goes."""

    run: str  # the run folder
    output: str | None = None  # the page to write; <run>/report.html if not given


def run(arguments: ReportArguments) -> None:
    """Write the page and say where it is."""
    folder = storage.existing(arguments.run, "run folder")
    output = storage.path(arguments.output) if arguments.output else folder / REPORT
    storage.existing(str(output.parent), "folder of the page")
    storage.write_whole(output, report.page(folder))
    print(f"wrote {output}")
