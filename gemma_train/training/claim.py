"""A run's folder: whose it is, and the summary and captions it ends with."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from etils import epath

from gemma_train import storage
from gemma_train.agreement import of_all, of_leader
from gemma_train.config import RunConfig, read_record, record
from gemma_train.data.images.pictures import PICTURES, kept_picture
from gemma_train.drift import accepts, differences
from gemma_train.errors import UserError, require
from gemma_train.evaluation.captions import Answers
from gemma_train.mesh import is_leader
from gemma_train.metrics.captions import Caption, write
from gemma_train.run_files import (
    CAPTIONS,
    CHECKPOINTS,
    RECORD,
    RETURN,
    SUMMARY,
    TEACHER,
    TOKENIZER,
)
from gemma_train.tokenizer.tokenizer import Tokenizer, check_same_ids


@contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Hold a run's folder; whatever ends the process lets go. Raises `UserError`, on all processes,
    where another run holds it. A bucket has no such lock."""
    with ExitStack() as stack:

        def hold() -> str:
            stack.enter_context(held(folder))
            return "held"

        of_leader(hold)
        yield


@contextmanager
def held(folder: str) -> Iterator[None]:
    """The same for a process without a runtime. Raises `UserError` too where it cannot be made."""
    if "://" in folder:
        yield
        return
    place = storage.path(folder)
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(storage.alone(place))
        except OSError as error:
            refused = storage.refusal(error)
            assert refused is not None
            raise type(refused)(
                f"folder {folder!r} cannot be written to ({refused}): choose another one, or see "
                "to that place"
            ) from None
        yield


def claim(config: RunConfig, *, begun: bool) -> list[str]:
    """Write the run's record; returns the changes of one that has `begun` which are accepted.

    Raises `UserError` where it was begun (saved) by another config, beyond those, or with a
    tokenizer of other ids.
    """
    folder, accepted = storage.path(config.folder), []
    require(
        (folder / RECORD).exists() or not (folder / TEACHER).exists(),
        f"folder {config.folder!r} holds a teacher's targets ({TEACHER} without {RECORD}): choose "
        "another --folder",
    )
    if begun:
        found = differences(read_record(config.folder), config)
        accepted = [one for name, one in found.items() if accepts(config.accepted_changes, name)]
        refused = {name: one for name, one in found.items() if one not in accepted}
        if refused:
            shown = "; ".join([*refused.values()][:3]) + ("; ..." if len(refused) > 3 else "")
            field = next(iter(refused))
            raise UserError(
                f"folder {config.folder!r} was made by another config ({shown}): choose another "
                f"--folder, remove that one, or accept it by --accepted-changes {field}"
            )
        own = _own_tokenizer(config)
        whose = f"folder {config.folder!r} was begun with"
        check_same_ids(str(own) if own.exists() else None, config.data.tokenizer, whose)
    of_all("compared")  # with the record as it was
    if is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)  # of the steps that it had before
        if not begun and not _is_recorded(config):
            (folder / CHECKPOINTS / RETURN).unlink(missing_ok=True)  # another run's
        storage.write_whole(folder / RECORD, record(config))
    return accepted


def keep_tokenizer(config: RunConfig, *, begun: bool) -> None:
    """Keep a copy of a claimed run's tokenizer, for another may take its file's place."""
    own = _own_tokenizer(config)
    if is_leader() and not (begun and own.exists()):
        storage.write_whole(own, Tokenizer.load(config.data.tokenizer).model)


def _own_tokenizer(config: RunConfig) -> epath.Path:
    return storage.path(config.folder) / TOKENIZER


def finished(config: RunConfig) -> bool:
    """Whether this very run is there with all its steps done."""
    folder = storage.path(config.folder)
    return (folder / SUMMARY).exists() and not differences(read_record(config.folder), config)


def _is_recorded(config: RunConfig) -> bool:
    """Whether the folder's record is of this very run."""
    try:
        return not differences(read_record(config.folder), config)
    except UserError:  # none, or garbage
        return False


def write_summary(folder: str, figures: dict[str, Any]) -> None:
    """Keep a finished run's figures beside its metrics; the report shows them."""
    storage.write_whole(storage.path(folder) / SUMMARY, json.dumps(figures, indent=2) + "\n")


def write_captions(config: RunConfig, found: Answers) -> None:
    """Keep what a finished run said of held-out images, in words, and how the first ones look."""
    tokenizer = Tokenizer.load(config.data.tokenizer)
    captions = [
        Caption(
            image=answer.image.hex(),
            caption=tokenizer.decode(answer.caption),
            said=tokenizer.decode(answer.said),
            right=answer.is_right,
            picture=_picture(config, answer.image) if number < PICTURES else "",
        )
        for number, answer in enumerate(found.answers)
    ]
    write(storage.path(config.folder) / CAPTIONS, captions)


def _picture(config: RunConfig, image: bytes) -> str:
    """A held-out image as its dataset keeps it, in base64; "" where it does not."""
    for folder in config.data.held_out:
        file = kept_picture(folder, image)
        if file.exists():
            return base64.b64encode(file.read_bytes()).decode()
    return ""
