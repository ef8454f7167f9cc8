"""`gemma-train plan CONFIG`: what a run would need of a TPU pod, and cost, before it is rented."""

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Literal

from rich.console import Console

from gemma_train import storage
from gemma_train.config import RunConfig
from gemma_train.errors import require
from gemma_train.metrics.waiting import waiting
from gemma_train.planning import page, text
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.cost import CostConfig
from gemma_train.planning.estimate import Assumptions
from gemma_train.planning.lean_remat import find_lean_remat
from gemma_train.planning.plan import as_data, compile_for, make_plan
from gemma_train.planning.slices import Slices
from gemma_train.planning.topology import NoCompiler
from gemma_train.teachers.online import with_teacher_model

PLAIN = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Plan a run of a config on TPU slices: --topology v5e:16x16 --slices 2, or as the config says.

    The two are short for --mesh.topology and --mesh.slices; every field of the config is a flag.
    """

    compile: bool = True  # compile the real step (minutes); otherwise it is only counted
    lean_remat: Literal["no", "device", "host"] = "no"  # find the least recomputation that fits
    json: str | None = None  # file for everything, machine readable
    html: str | None = None  # file for a page to read and to pass on
    assume: Assumptions = Assumptions()  # what the estimate of a step takes for granted
    cost: CostConfig = CostConfig()  # what energy, carbon and money are reckoned with


def run(config: RunConfig, arguments: PlanArguments, source: str) -> int:
    """Print the plan of the config read from `source`, and write it where asked.

    The exit code: 1 where the compiled step fails a gate, or cannot be read for them. Raises
    `UserError` for slices that there are not, a mesh that does not multiply to their chips and,
    after the plan is told, for a step that the compiler found too large.
    """
    require(
        arguments.compile or arguments.lean_remat == "no",
        f"lean_remat is {arguments.lean_remat!r}: it compiles, so leave --no-compile away",
    )
    for file in (arguments.json, arguments.html):
        if file is not None:
            storage.existing(str(storage.path(file).parent), "folder of the plan")
            require(not storage.path(file).is_dir(), f"{file!r} is a folder: name a file in it")
    config = with_teacher_model(config)
    slices = Slices.named(config.mesh.topology, config.mesh.slices)
    slices.check(config.mesh)
    console = Console()
    planned = partial(
        make_plan,
        slices=slices,
        name=PurePath(source).stem,
        assume=arguments.assume,
        cost_inputs=arguments.cost,
    )
    plan = planned(config, None)  # counted: mistakes are found before minutes are spent
    _print(console, text.head(plan))
    compiled = None
    if arguments.compile:
        config, compiled = _compiled(config, slices, arguments.lean_remat, console)
        plan = planned(config, compiled)
    _print(console, text.told(plan))
    _write(arguments.json, lambda: json.dumps(as_data(plan), indent=2) + "\n")
    _write(arguments.html, lambda: page.page(plan))
    require(plan.memory.fits or compiled is None, text.refusal(plan))
    if failed := text.failed_gates(plan):
        print(f"gemma-train: {failed}", file=sys.stderr)
        return 1
    return 0


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        style = "bold" if line and not line.startswith(" ") else None
        console.print(line, style=style, **PLAIN)


def _write(file: str | None, content: Callable[[], str]) -> None:
    if file is not None:
        storage.write_whole(storage.path(file), content())
        print(f"wrote {file}")


def _compiled(
    config: RunConfig, slices: Slices, lean_remat: str, console: Console
) -> tuple[RunConfig, Compiled | TooLarge | None]:
    """The config, its remat policy the found one where asked, and what the compiler says of it.

    None, and how to get a compiler, where there is none.
    """

    what = f"compiling the step for {slices.chips:,} {slices.chip.generation}"
    numbers = itertools.count(1)

    def tried(candidate: RunConfig) -> Compiled | TooLarge:
        with waiting(f"{what}, {text.trial(next(numbers), candidate.compute)}", console):
            return compile_for(candidate, slices)

    try:
        if lean_remat == "no":
            with waiting(what, console):
                return config, compile_for(config, slices)
        found = find_lean_remat(config, slices, tried, offload=lean_remat == "host")
    except NoCompiler as error:
        console.print(
            f"\nno TPU compiler here ({str(error).split(';')[0]}), so what follows is counted, "
            "not compiled: pip install -e '.[plan]' gets it",
            **PLAIN,
        )
        return config, None
    _print(console, text.lean_remat(found))
    return found.config, found.compiled
