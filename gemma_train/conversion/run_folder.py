"""Run folders: the parameters in a run's newest checkpoint, and runs made of imported weights."""

import logging
from typing import Any

from etils import epath

from gemma_train import storage
from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.seal import damage, seal
from gemma_train.config import (
    DataConfig,
    RunConfig,
    TokenSource,
    read_record,
    record,
)
from gemma_train.conversion import encoder_folder, encoder_record, orbax_arrays
from gemma_train.conversion.fingerprint import float32_sha256
from gemma_train.conversion.mapping import check_shapes
from gemma_train.conversion.names import shapes
from gemma_train.conversion.tensors import Tensors, Weights, stacked, unstacked
from gemma_train.conversion.tokenizer_files import copy_tokenizer, find_tokenizer
from gemma_train.data.images.store import read_head
from gemma_train.drift import differences
from gemma_train.errors import Damaged, require
from gemma_train.leaves import by_path, from_paths
from gemma_train.metrics.byte_progress import Advance
from gemma_train.run_files import CHECKPOINTS, ENCODER, RECORD, TOKENIZER
from gemma_train.vision import VisionConfig

MODEL, MOMENTS = "model/", "moments/"  # what leaves of a checkpoint begin with


def is_folder(folder: epath.Path) -> bool:
    """Whether this is the folder of a run."""
    return (folder / RECORD).exists()


def read(folder: epath.Path, step: int | None = None) -> Weights:
    """The parameters of the newest checkpoint, or of that of `step`.

    Raises `UserError` where there is none, and where it does not hold the model of the record.
    """
    run = read_record(str(folder))
    step, recorded = _finished_step(folder, step), storage.path(run.data.tokenizer)
    checkpoint = _checkpoint(folder, step)
    leaves = _part(checkpoint, MODEL)
    seen = encoder_record.read(str(folder))
    weights = Weights(
        source=str(folder),
        format="run",
        config=run.model,
        encoder_sha256=seen.encoder_sha256 if seen else None,
        tensors=unstacked(leaves, run.model) | _encoder(run, folder),
        tokenizer=find_tokenizer(folder) or (str(recorded) if recorded.exists() else None),
        step=step,
    )
    where = f"checkpoint {checkpoint} does not hold the model that {RECORD} describes"
    check_shapes(weights.parameters, shapes(run.model), where)
    return weights


def _encoder(run: RunConfig, folder: epath.Path) -> Tensors:
    """The frozen encoder: its own, or that of the store whose embeddings it reads; none if gone.

    Raises `UserError` where it is not the one that the run was trained with.
    """
    own = folder / ENCODER
    if run.model.vision is None:
        return {}
    if encoder_folder.is_folder(own):
        tensors = _read_encoder(run.model.vision, own)
        if encoder_record.read(str(folder)) is not None:
            encoder_record.check_sha256(str(folder), float32_sha256(tensors))
        return tensors
    if run.data.images is None:
        return {}
    beside = storage.path(run.data.images.store) / ENCODER
    if not encoder_folder.is_folder(beside):
        return {}
    encoder_record.check(str(folder), read_head(run.data.images.store))
    return _read_encoder(run.model.vision, beside)


def _read_encoder(expected: VisionConfig, folder: epath.Path) -> Tensors:
    vision, tensors = encoder_folder.read(folder)
    found = differences(expected, vision, "model.vision")
    require(not found, f"{folder} holds another encoder: {'; '.join(found.values())}")
    return tensors


def restore[Tree](folder: epath.Path, step: int, like: Tree, part: str = MODEL) -> Tree:
    """A part of a checkpoint (its model, its moments), each leaf placed and cast as `like` says."""
    wanted = {part + path: leaf for path, leaf in by_path(like).items()}
    found = orbax_arrays.load(_checkpoint(folder, step), wanted)
    return from_paths({path.removeprefix(part): leaf for path, leaf in found.items()}, like)


def check_moments(weights: Weights, like: Any) -> None:
    """Raise `UserError` unless these are a run's, and its checkpoint has moments shaped as `like`.

    A run that `convert` made, or that another optimizer trained, has none.
    """
    require(
        weights.step is not None,
        f"{weights.source!r} is no run, and only a run's checkpoint has moments: begin with fresh "
        "ones (initial_moments='fresh')",
    )
    checkpoint = _checkpoint(storage.path(weights.source), weights.step or 0)
    found = {name: tensor.shape for name, tensor in _part(checkpoint, MOMENTS).items()}
    wanted = {path: leaf.shape for path, leaf in by_path(like).items()}
    missing = [path for path, shape in wanted.items() if found.get(path) != shape]
    require(
        not missing,
        f"checkpoint {checkpoint} does not hold this optimizer's moments ({len(missing)} of "
        f"{len(wanted)} are missing or of another shape, such as {(missing or [''])[0]}): begin "
        "with fresh ones (initial_moments='fresh')",
    )


def _part(checkpoint: epath.Path, part: str) -> Tensors:
    """The leaves of one part of a checkpoint, by their path in it."""
    return {
        name.removeprefix(part): tensor
        for name, tensor in orbax_arrays.stored(checkpoint).items()
        if name.startswith(part)
    }


def write(weights: Weights, folder: epath.Path, advance: Advance, *, name: str) -> None:
    """Make a run that has taken no step: its parameters, and a config to edit.

    `name` is the folder's name once it is whole. A frozen encoder stands beside the checkpoints,
    which hold what is trained.
    """
    weights.check_encoder()
    copy_tokenizer(weights, folder)
    config = weights.config
    run = RunConfig(
        folder=name,
        model=config,
        data=DataConfig(
            tokenizer=f"{name}/{TOKENIZER}",
            train=(TokenSource(path="data/train"),),
            sequence_length=config.context,
            batch_rows=1,
        ),
        steps=1,
        initial_weights=weights.source,
    )
    encoder = weights.encoder
    leaves = stacked({n: t for n, t in weights.tensors.items() if n not in encoder}, config)
    orbax_arrays.save(
        folder / CHECKPOINTS / "0",
        {MODEL + name: tensor for name, tensor in leaves.items()},
        advance,
        metadata={"config": record(run)},
    )
    seal(folder / CHECKPOINTS / "0")
    if config.vision is not None:
        (folder / ENCODER).mkdir()
        encoder_folder.write(encoder, config.vision, folder / ENCODER, advance)
    storage.write_whole(folder / RECORD, record(run))


def _finished_step(folder: epath.Path, asked: int | None) -> int:
    """The step of the newest whole checkpoint, or the one that is asked for, if it is whole.

    Every file is read: Orbax would restore flipped bits without a word. Raises `UserError` where
    there is none.
    """
    checkpoints = CheckpointFolder(folder)
    steps = checkpoints.steps
    require(
        bool(steps or checkpoints.set_aside),
        f"{checkpoints.path} holds no finished checkpoint: train the run first",
    )
    require(
        asked is None or asked in steps,
        f"{checkpoints.path} holds no finished checkpoint of step {asked}: choose from "
        f"{', '.join(map(str, steps))}",
    )
    if asked is None:
        newest = checkpoints.newest_whole(logging.getLogger(__name__).warning)
        assert newest is not None, "there are some"
        return newest
    if found := damage(checkpoints.checkpoint(asked)):
        raise Damaged(f"checkpoint {asked} is damaged ({found}): choose another step, or none")
    return asked


def _checkpoint(folder: epath.Path, step: int) -> epath.Path:
    return folder.absolute() / CHECKPOINTS / str(step)
