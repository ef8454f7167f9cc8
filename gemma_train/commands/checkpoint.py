"""`gemma-train checkpoint list|verify|prune RUN`: the checkpoints of a run, and how they are."""

from dataclasses import dataclass
from typing import Literal

from etils import epath
from rich.console import Console
from rich.table import Table

from gemma_train import storage
from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.seal import SIZES_ALONE, SealedFile, contents, damage
from gemma_train.errors import Damaged, require
from gemma_train.metrics.wording import count
from gemma_train.run_files import RECORD
from gemma_train.training.claim import held


@dataclass(frozen=True, kw_only=True)
class CheckpointArguments:
    """What is done with which run's checkpoints."""

    action: Literal["list", "verify", "prune"]  # verify reads every byte; prune removes
    run: str  # the run's folder
    keep: int = 1  # newest whole checkpoints that prune leaves

    def __post_init__(self) -> None:
        require(self.keep >= 1, f"keep is {self.keep}: it must be at least 1")


def run(arguments: CheckpointArguments) -> int:
    """Show or thin out the checkpoints; 1 where one that was looked at is damaged."""
    folder = CheckpointFolder(arguments.run)
    require(
        (storage.path(arguments.run) / RECORD).exists(),
        f"{arguments.run!r} holds no {RECORD}: name the folder of a run",
    )
    if arguments.action == "prune":
        with held(arguments.run):
            return _prune(folder, arguments.keep)
    reads = slice(None) if arguments.action == "verify" else SIZES_ALONE
    table, damaged = Table("step", "files", "bytes", "state", box=None), []
    for step in folder.steps:
        found, files = _looked_at(folder.checkpoint(step), reads)
        if found and step not in folder.steps:
            continue  # the run, which goes on, has removed it
        damaged += [f"checkpoint {step} is damaged: {found}"] if found else []
        whole = "verified" if arguments.action == "verify" else "sealed"
        if found:
            table.add_row(f"{step:,}", "", "", "damaged")
        else:
            bytes_there = count(sum(file.size for file in files))
            table.add_row(f"{step:,}", str(len(files)), bytes_there, whole)
    for name in (*folder.unfinished, *folder.set_aside):
        table.add_row(name, "", "", "moved out of the way" if "damaged" in name else "unfinished")
    if table.row_count:
        Console(soft_wrap=True).print(table)
    else:
        print(f"{folder.path} holds no checkpoint yet")
    print("\n".join(damaged), end="\n" if damaged else "")
    return int(bool(damaged))


def _looked_at(checkpoint: epath.Path, reads: slice) -> tuple[str, list[SealedFile]]:
    """What is wrong with a checkpoint, and what it holds where nothing is."""
    if found := damage(checkpoint, reads):
        return found, []
    try:
        return "", contents(checkpoint)
    except (Damaged, OSError) as error:  # it has just gone, or been hurt
        return str(error), []


def _prune(folder: CheckpointFolder, keep: int) -> int:
    """Remove all but the newest whole ones: every byte of those is read first."""
    newest = folder.newest_whole(lambda line: None)  # each is told below
    require(newest is not None, f"{folder.path} holds no checkpoint: there is nothing to prune")
    kept, damaged = [], 0
    for step in reversed(folder.steps):
        found = damage(folder.checkpoint(step)) if len(kept) < keep else ""
        if found:
            damaged += 1
            print(f"checkpoint {step} is damaged and left as it is ({found})")
        elif len(kept) < keep:
            kept.append(step)
        else:
            folder.remove(step)
            print(f"checkpoint {step:,} removed")
    folder.clear_unfinished()
    print(f"left: {', '.join(f'{step:,}' for step in reversed(kept))}")
    return int(damaged > 0)
