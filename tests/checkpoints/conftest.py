"""A folder of checkpoints as Orbax and their seals leave them, without a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.seal import seal

FILES = {
    "_CHECKPOINT_METADATA": b'{"custom": 1}',
    "empty": b"",
    "state/manifest.ocdbt": bytes(range(113)),
    "state/d/aaaa": bytes(1000),
    "state/ocdbt.process_0/d/bbbb": b"b" * 577,
    "state/ocdbt.process_1/d/cccc": b"c" * 165,
    "state/array_metadatas/process_1": b"[]",
}


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    return CheckpointFolder(str(tmp_path / "run"))


@pytest.fixture
def saved(folder) -> Callable[..., Path]:
    """Makes the checkpoint of a step, sealed by so many processes."""

    def make(step: int, *, processes: int = 1, sealed: bool = True) -> Path:
        place = Path(folder.checkpoint(step))
        for name, content in FILES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        for process in range(processes if sealed else 0):
            seal(epath.Path(place), process, processes)
        return place

    return make
