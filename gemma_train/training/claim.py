"""A run's folder: whose it is, and the summary it ends with."""

import json
from typing import Any

from gemma_train import storage
from gemma_train.config import RunConfig, differences, read_record, record
from gemma_train.errors import UserError
from gemma_train.mesh import is_leader
from gemma_train.run_files import RECORD, SUMMARY


def claim(config: RunConfig, *, begun: bool) -> None:
    """Write the run's record. Raises `UserError` where another run has `begun` (saved) there."""
    folder = storage.path(config.folder)
    if begun:
        found = differences(read_record(config.folder), config)
        if found:
            shown = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
            raise UserError(
                f"folder {config.folder!r} was made by another config ({shown}): "
                "choose another --folder, or remove that one"
            )
    if is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_whole(folder / RECORD, record(config))


def finished(config: RunConfig) -> bool:
    """Whether this very run is there with all its steps done."""
    folder = storage.path(config.folder)
    return (folder / SUMMARY).exists() and not differences(read_record(config.folder), config)


def write_summary(folder: str, figures: dict[str, Any]) -> None:
    """Keep a finished run's figures beside its metrics; the report shows them."""
    storage.write_whole(storage.path(folder) / SUMMARY, json.dumps(figures, indent=2) + "\n")
