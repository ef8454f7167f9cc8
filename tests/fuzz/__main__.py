"""`make fuzz`: every reader of files, each with thousands of damaged inputs.

`python -m tests.fuzz --reader gguf --case 17` reads that case alone, with its traceback.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz import campaign
from tests.fuzz.campaign import Result
from tests.fuzz.case import Finding, hurt
from tests.fuzz.child import sample_of
from tests.fuzz.reader import put

KEPT = Path("runs/fuzz")  # gets the files of what is found


def main() -> int:
    """The exit code: 1 where something was found, or inputs were left out."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=10_000, help="inputs of each reader; fewer of slow ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is other damage")
    parser.add_argument("--reader", action="append", help="of these readers alone")
    parser.add_argument("--case", type=int, help="this case alone, here and now")
    arguments = parser.parse_args()
    from tests.fuzz.readers import READERS

    names = arguments.reader or list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"no reader {', '.join(map(repr, unknown))}: {', '.join(READERS)}")
    if arguments.case is not None:
        for name in names:
            _alone(READERS[name], arguments.seed, arguments.case)
        return 0
    cases = {name: -(-arguments.cases // READERS[name].cost) for name in names}
    results = _all(cases, arguments.seed)
    left = [one.reader for one in results if one.inputs != cases[one.reader]]
    if left:
        print(f"not all inputs were read of {', '.join(left)}", file=sys.stderr)
    return int(bool(left) or any(result.findings for result in results))


def _alone(reader, seed: int, case: int) -> None:
    """Read one case in this process; its files stay."""
    sample = sample_of(reader)
    folder = KEPT / f"{reader.name} {case}"
    shutil.rmtree(folder, ignore_errors=True)
    put(hurt(reader, sample, seed=seed, case=case), folder, {})
    print(f"the files of {reader.name} case {case} are in {folder}")
    reader.read(folder)
    print("they are read well")


def _all(cases: Mapping[str, int], seed: int) -> list[Result]:
    console, results, seconds = Console(), [], []
    columns = TextColumn("{task.description:22}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for name, count in cases.items():
            line, begin = progress.add_task(name, total=count), time.monotonic()
            result = _one(name, count, seed, partial(progress.update, line))
            progress.update(line, completed=result.inputs)
            results.append(result)
            seconds.append(time.monotonic() - begin)
            _tell(console, result.findings)
            if not console.is_terminal:  # which would show the bars
                console.print(f"{name}: {result.inputs:,} inputs, {len(result.findings)} findings")
    console.print(_table(results, seconds))
    return results


def _one(name: str, cases: int, seed: int, update: Callable[..., object]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        result = campaign.run(
            {name: cases},
            Path(folder),
            seed=seed,
            told=lambda _, done: update(completed=done),
        )[name]
        _keep(Path(folder), name)
    return result


def _keep(folder: Path, name: str) -> None:
    kept = campaign.Answers(str(folder), name).kept
    if kept.exists():
        shutil.copytree(kept, KEPT / name, dirs_exist_ok=True)


def _tell(console: Console, findings: Sequence[Finding]) -> None:
    """The first finding of each kind whole, and how many there are."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for some in kinds.values():
        first = some[0]
        console.rule(f"{first.place}: {len(some):,} such")
        console.print(first.told or first.line, markup=False, highlight=False)


def _table(results: Sequence[Result], seconds: Sequence[float]) -> Table:
    table = Table(title="damaged inputs")
    for head in ("reader", "inputs", "read well", "refused", "findings", "seconds", "memory, MB"):
        table.add_column(head, justify="left" if head == "reader" else "right")
    for one, took in zip(results, seconds, strict=True):
        counts = (one.inputs, one.well, one.refused, len(one.findings))
        table.add_row(
            one.reader, *(f"{n:,}" for n in counts), f"{took:.0f}", f"{one.memory / 1e6:,.0f}"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
