"""Our step compiled for TPU pods, beside MaxText's: `python -m benchmarks.pod_compile [CASE ...]`.

Full-depth Gemma 3 on the real TPU compiler, no TPU needed: cases A to D; with `--lean` the remat
policy that repeats least within 90 % of a chip, with `--table-2` the meshes of the Gemma 3 report,
with `--long` its runs at 131,072 tokens.
Each step is compiled in a process of its own, so that its memory can be told: minutes each.
`--keep FILE` goes on where this commit was, `--write docs/pods.md` puts the tables there. The exit
code is 1 where a case is over a limit or fails a gate.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import jax

from benchmarks import pod_tables
from benchmarks.pages import replaced
from benchmarks.pod_cases import CASES, LONG, TABLE_2, config_of
from benchmarks.pod_tables import GB
from gemma_train.config import RunConfig
from gemma_train.errors import UserError
from gemma_train.metrics.wording import duration
from gemma_train.model.flops import parameter_count
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.cost import CostConfig
from gemma_train.planning.estimate import Assumptions
from gemma_train.planning.lean_remat import find_lean_remat
from gemma_train.planning.memory import kept_bytes
from gemma_train.planning.plan import compile_for, make_plan
from gemma_train.planning.slices import Slices

Result = dict[str, Any]  # a line of the file that is kept
ROOT = Path(__file__).parent.parent
CHANGED = "-dirty"  # behind a commit: no two such are known to be the same


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process."""

    kind: str  # plan | lean | lean_offload
    name: str  # of a case, or of a config
    layers: int | None

    def run(self) -> Result:
        """Compile, in this process, and tell all that the tables want."""
        config = config_of(self.name, self.layers)
        slices = Slices.named(config.mesh.topology, config.mesh.slices)
        found, tried, failed = compile_for(config, slices) if self.kind == "plan" else None, 1, ()
        if self.kind != "plan":
            # Several compilations a case, of chips that have room: the form that compiles faster.
            config = replace(config, compute=replace(config.compute, scan_neighbours=True))
            lean = find_lean_remat(
                config,
                slices,
                lambda candidate: _told_on_the_way(candidate, slices),
                offload=self.kind == "lean_offload",
            )
            config, tried, failed = lean.config, lean.tried, lean.failed
            found = lean.compiled if lean.fits else None
        return vars(self) | {
            "versions": {name: version(name) for name in ("jax", "libtpu")},
            "commit": commit(),
            "tried": tried,
            "failed": [one.message for one in failed],
            "process_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "step": told(config, slices, found),
        }

    def run_apart(self) -> Result:
        """The same in a process of its own. Raises `CalledProcessError` where that fails."""
        command = [sys.executable, "-m", "benchmarks.pod_compile", "--task", json.dumps(vars(self))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def _told_on_the_way(config: RunConfig, slices: Slices) -> Compiled | TooLarge:
    """Compiled, with a line on standard error: a search takes many times as long."""
    compute = config.compute
    if compute.remat == "full":
        what = "full remat"
    else:
        what = f"saved {' '.join(compute.saved)}; offloaded {' '.join(compute.offloaded) or 'none'}"
    print(f"{config.folder}: {what}", file=sys.stderr)
    try:
        found = compile_for(config, slices)
    except jax.errors.JaxRuntimeError as error:
        print(f"    failed: {error}", file=sys.stderr)
        raise
    needed = found.peak_bytes if isinstance(found, Compiled) else found.needed_bytes
    share = f"{needed / GB:.2f} GB, {needed / slices.chip.hbm_bytes:.0%} of HBM"
    print(f"    {type(found).__name__}: {share}, {duration(found.seconds)}", file=sys.stderr)
    return found


def told(config: RunConfig, slices: Slices, found: Compiled | TooLarge | None) -> Result | None:
    """The figures of a compiled step; None of one that does not fit."""
    if not isinstance(found, Compiled):
        return None
    plan = make_plan(
        config,
        found,
        slices=slices,
        name=config.folder,
        assume=Assumptions(),
        cost_inputs=CostConfig(),
    )
    assert not plan.unread, "the collectives could not be read with this libtpu"
    compute = config.compute
    return {
        "parameters": parameter_count(config.model),
        "chips": slices.chips,
        "topology": slices.name,
        "slices": slices.count,
        "mesh": config.mesh.axis_sizes,
        "remat": compute.remat,
        "saved": compute.saved if compute.remat == "save_named" else (),
        "offloaded": compute.offloaded if compute.remat == "save_named" else (),
        "offloaded_bytes": kept_bytes(config, compute.offloaded),
        "peak_bytes": found.peak_bytes,
        "hbm_bytes": slices.chip.hbm_bytes,
        "recomputed": plan.recomputed_flops_per_token / plan.flops_per_token,
        "compile_seconds": found.seconds,
        "collectives": [vars(total) for total in plan.collectives or []],
        "gates": [
            vars(gate) | {"told": gate.told, "holds": gate.holds} for gate in plan.gates or []
        ],
        "step_seconds": plan.estimate.step_seconds,
        "mfu": plan.estimate.mfu,
        "run_seconds": plan.cost.seconds,
    }


def commit() -> str:
    """The commit that is compiled, marked where its code is changed; "" outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "gemma_train", "benchmarks", "configs")
    return git("rev-parse", "--short", "HEAD") + (CHANGED if changed else "")


class Kept:
    """Results, in a file of JSON lines where one is named."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        text = file.read_text() if file and file.exists() else ""
        self._results = [json.loads(line) for line in text.splitlines()]

    def of(self, task: Task) -> Result:
        """The result of a task, kept or made now."""
        what, now = f"{task.kind} of {task.name}", commit()
        same = [
            result
            for result in self._results
            if all(result[name] == value for name, value in vars(task).items())
        ]
        for result in same:
            if result["commit"] == now and not now.endswith(CHANGED):
                print(f"{what}: kept, of commit {now}", flush=True)
                return result
        again = "of another commit: compiled anew" if same else "compiling"
        print(f"{what}: {again}", flush=True)
        result = task.run_apart()
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(result) + "\n")
        return result


def main() -> int:
    """The exit code: 1 where a case is over a limit, fails a gate, or does not fit."""
    arguments = _arguments()
    jax.config.update("jax_platforms", "cpu")  # with libtpu here, jax would look for a TPU
    if arguments.task:
        print(json.dumps(Task(**json.loads(arguments.task)).run()))
        return 0
    kept, layers = Kept(arguments.keep), arguments.layers

    def result(kind: str, name: str) -> Result:
        return kept.of(Task(kind=kind, name=name, layers=layers))

    long_alone = arguments.long and not (arguments.lean or arguments.table_2)
    names = arguments.cases or ([] if long_alone else sorted(CASES))
    cases = [result("plan", name) for name in names]
    tables = {"cases": pod_tables.cases(cases)} if cases else {}
    if arguments.lean:
        found = []
        for name in names:
            found.append(result("lean", name))
            if (found[-1]["step"] or {"recomputed": 1.0})["recomputed"] > 0:
                found.append(result("lean_offload", name))
        tables["lean remat"] = pod_tables.lean(found)
    if arguments.table_2:
        found = [result("plan", name) for name in TABLE_2]
        tables["table 2"] = pod_tables.table_2(found)
        tables["collectives"] = pod_tables.collectives(found)
        tables["attention along seq"] = pod_tables.attention(TABLE_2 + LONG)
    if arguments.long:
        tables["long context"] = pod_tables.table_2([result("plan", name) for name in LONG])
    for table in tables.values():
        print(f"\n{table}")
    if arguments.write:
        page = arguments.write.read_text()
        for name, table in tables.items():
            page = replaced(page, name, table)
        arguments.write.write_text(page)
    failures = [line for case in cases for line in pod_tables.failures(case)]
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pod_compile: {message}\n")


def _arguments() -> argparse.Namespace:
    """What is asked for; all that can be wrong with it is told before anything is compiled."""
    parser = _Parser(description="Our step compiled for TPU pods.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; or all")
    parser.add_argument("--lean", action="store_true", help="find the remat policy for speed")
    parser.add_argument("--table-2", action="store_true", help="the four meshes of the report")
    parser.add_argument(
        "--long", action="store_true", help="the stage at 131,072 tokens; alone, no case"
    )
    parser.add_argument("--layers", type=int, help="so many only: to try this script")
    parser.add_argument("--keep", type=Path, help="file of results, to go on from")
    parser.add_argument("--write", type=Path, help="page that holds the tables")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(CASES)):
        parser.error(f"case {', '.join(unknown)}: choose from {', '.join(CASES)}")
    if arguments.write and not arguments.write.is_file():
        parser.error(f"write is {str(arguments.write)!r}: name a page that is there")
    if arguments.keep and not arguments.keep.parent.is_dir():
        parser.error(f"keep is {str(arguments.keep)!r}: name a file in a folder that is there")
    try:
        for name in CASES:
            config_of(name, arguments.layers)
    except UserError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
