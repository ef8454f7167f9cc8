"""Who teaches a run in its step: kept in the run's folder, and the same at every resumption.

The parameters themselves are not read for it, they may be terabytes: of every file the name, the
size and both ends are, in which a checkpoint's and a safetensors' own lists of contents stand.
"""

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256

import msgspec
from etils import epath

from gemma_train import storage
from gemma_train.checkpoints.seal import is_seal
from gemma_train.config import RunConfig
from gemma_train.conversion.tensors import Weights
from gemma_train.errors import UserError, require
from gemma_train.mesh import is_leader
from gemma_train.model.flops import parameter_count
from gemma_train.run_files import CHECKPOINTS, TEACHER
from gemma_train.storage import read_bytes
from gemma_train.teachers.online import online

ENDS = 1 << 16  # bytes of each end of a file that are read
# Of a Hugging Face folder, which holds much else; the others are a checkpoint's own, all of it.
_HUGGING_FACE = ("config.json", "*.safetensors")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells one teacher from another."""

    folder: str  # as the config names it
    step: int | None  # of a run
    parameters: int
    sha256: str  # of the architecture, and of every file's name, size and ends


def identity(config: RunConfig, weights: Weights) -> Identity:
    """Who teaches the run, from `weights` that `open_teacher` gave."""
    teacher = online(config)
    assert teacher is not None, "there are weights of one"
    told = {  # what is as it always was may be a field that came later
        field.name: value
        for field in fields(weights.config)
        if (value := getattr(weights.config, field.name)) != field.default
    }
    digest = sha256(repr(told).encode())
    for name, file in model_files(weights).items():
        digest.update(f"\n{name} {file.stat().length}\n".encode())
        digest.update(_ends(file))
    return Identity(
        folder=teacher.weights,
        step=weights.step,
        parameters=parameter_count(weights.config),
        sha256=digest.hexdigest(),
    )


def model_files(weights: Weights) -> dict[str, epath.Path]:
    """The files that hold a model's parameters, by their names in its folder, sorted."""
    folder = storage.path(weights.source).absolute()
    if weights.step is not None:
        folder = folder / CHECKPOINTS / str(weights.step)
    if weights.format == "hf":
        files = [file for pattern in _HUGGING_FACE for file in folder.glob(pattern)]
    else:
        files = [file for _, file in storage.files_below(folder) if not is_seal(file.name)]
    return dict(sorted((str(file.relative_to(folder)), file) for file in files))


def check_teacher(config: RunConfig, weights: Weights | None) -> None:
    """Refuse another teacher than a run was begun with. Raises `UserError` naming both values."""
    file = storage.path(config.folder) / TEACHER
    if weights is not None and file.exists():
        _check_same(config, _read(file), identity(config, weights))


def keep_teacher(config: RunConfig, weights: Weights | None, *, begun: bool) -> None:
    """Keep who teaches; of a run that has `begun` it is kept, unless it was begun without one."""
    file = storage.path(config.folder) / TEACHER
    if weights is not None and is_leader() and not (begun and file.exists()):
        here = asdict(identity(config, weights))
        storage.write_whole(file, json.dumps(here, indent=2) + "\n")


def taught_by(folder: str) -> Identity | None:
    """Who taught a run in its step; None where nobody has yet. Raises `UserError` for garbage."""
    file = storage.path(folder) / TEACHER
    return _read(file) if file.exists() else None


def _check_same(config: RunConfig, there: Identity, here: Identity) -> None:
    found = [
        f"{name} was {getattr(there, name)!r}, is {getattr(here, name)!r}"
        for name in (field.name for field in fields(Identity))
        if getattr(there, name) != getattr(here, name)
    ]
    pinned = there.step is not None and there.step != here.step
    cure = f"set loss.teacher.step to {there.step}" if pinned else "bring that teacher back"
    require(
        not found,
        f"folder {config.folder!r} was taught by another teacher ({'; '.join(found)}): {cure}, or "
        "choose another --folder",
    )


def _read(file: epath.Path) -> Identity:
    cure = "remove it to go on with the teacher that is there"
    try:
        return msgspec.json.decode(read_bytes(file, cure), type=Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is garbled ({error}): {cure}") from None


def _ends(file: epath.Path) -> bytes:
    """The first bytes of a file and its last."""
    with file.open("rb") as stream:
        first = stream.read(ENDS)
        stream.seek(max(ENDS, file.stat().length - ENDS))
        return first + stream.read(ENDS)
