"""The teacher that runs in a step: its parameters on the mesh, beside the state and no part of it.

It is read from its folder at every start, also of a run that goes on, and is in no checkpoint.
Split as the student, a device holds 1 / (data x seq) of it and it is gathered layer by layer;
whole, every device holds all of it and nothing is gathered.
"""

from dataclasses import replace
from functools import partial

from gemma_train.config import RunConfig
from gemma_train.conversion.fingerprint import stored_encoder_sha256
from gemma_train.conversion.load import load, open_weights, untrained
from gemma_train.conversion.tensors import Weights
from gemma_train.data.images.store import read_head
from gemma_train.errors import asked_by, require
from gemma_train.losses.distillation import Distillation, Online
from gemma_train.metrics.wording import count
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.model.flops import parameter_count
from gemma_train.placement import abstract
from gemma_train.tokenizer.tokenizer import check_same_ids


def online(config: RunConfig) -> Online | None:
    """The config of the teacher that runs in the step, if there is one."""
    if isinstance(config.loss, Distillation) and isinstance(config.loss.teacher, Online):
        return config.loss.teacher
    return None


def open_teacher(config: RunConfig) -> Weights | None:
    """The teacher of an online run where it is stored, checked, none of its tensors read yet.

    Raises `UserError` for what is no model, and for one of another vocabulary or tokenizer.
    """
    if (teacher := online(config)) is None:
        return None
    with asked_by("loss.teacher.weights"):
        weights = open_weights(teacher.weights, teacher.model, teacher.step)
    _check_model(config, teacher, weights.config)
    _check_encoder(config, teacher, weights)
    whose = f"loss.teacher.weights {teacher.weights!r} was made with"
    check_same_ids(weights.tokenizer, config.data.tokenizer, whose)
    return weights


def load_teacher(config: RunConfig, weights: Weights | None = None) -> Gemma | None:
    """The teacher on the mesh in force, in the dtype and sharding of the config.

    `weights` is what `open_teacher` gave, if it was called.
    """
    weights, teacher = weights or open_teacher(config), online(config)
    if weights is None or teacher is None:
        return None
    compute, whole = _compute(config, teacher), teacher.sharding == "whole"
    return load(weights, compute, teacher.dtype, whole=whole)


def teacher_model(config: RunConfig) -> GemmaConfig | None:
    """The architecture of the teacher: as the config says, or else as its folder does."""
    if (teacher := online(config)) is None:
        return None
    if teacher.model is None:
        weights = open_teacher(config)
        return weights.config if weights else None
    _check_model(config, teacher, teacher.model)
    return teacher.model


def with_teacher_model(config: RunConfig) -> RunConfig:
    """The config with the teacher's architecture in it, so that its folder is asked no more."""
    teacher = online(config)
    if teacher is None or not isinstance(config.loss, Distillation):
        return config
    teacher = replace(teacher, model=teacher_model(config))
    return replace(config, loss=replace(config.loss, teacher=teacher))


def untrained_teacher(config: RunConfig) -> Gemma | None:
    """What `load_teacher` gives, but for its numbers: to be traced for its types."""
    teacher, model = online(config), teacher_model(config)
    if teacher is None or model is None:
        return None
    compute, whole = _compute(config, teacher), teacher.sharding == "whole"
    return untrained(model, compute, teacher.dtype, whole=whole)


def abstract_teacher(config: RunConfig) -> Gemma | None:
    """Shapes, dtypes and shardings of `load_teacher` on the mesh in force, nothing allocated."""
    return abstract(partial(untrained_teacher, config))


def told(config: RunConfig, weights: Weights) -> str:
    """In a line, who teaches."""
    teacher = online(config)
    assert teacher is not None, "there are weights of one"
    after = "" if weights.step is None else f" after {weights.step:,} steps"
    place = "a copy on every device" if teacher.sharding == "whole" else "split as the student"
    size = count(parameter_count(weights.config))
    return f"teacher: {size} parameters of {teacher.weights}{after}, {teacher.dtype}, {place}"


def _compute(config: RunConfig, teacher: Online) -> ComputeConfig:
    """The student's, in the teacher's dtype; nothing is kept for a backward pass."""
    return replace(config.compute, dtype=teacher.dtype, remat="none")


def _check_model(config: RunConfig, teacher: Online, model: GemmaConfig) -> None:
    """Raise `UserError` unless a teacher can read the student's rows: its tokens and images."""
    own, seen = config.model.vocabulary, config.model.vision
    require(
        model.vocabulary == own,
        f"loss.teacher.weights {teacher.weights!r} has a vocabulary of {model.vocabulary}, the "
        f"model one of {own}: a teacher's tokens must be the student's",
    )
    require(
        config.data.images is None or model.vision == seen,
        f"loss.teacher.weights {teacher.weights!r} sees images by {model.vision}, the model by "
        f"{seen}: a teacher's images must be the student's",
    )


def _check_encoder(config: RunConfig, teacher: Online, weights: Weights) -> None:
    """Refuse a teacher that has seen images by another encoder than the student's store is of."""
    if config.data.images is None:
        return
    there, here = stored_encoder_sha256(weights), read_head(config.data.images.store)
    require(
        there is None or there == here.encoder_sha256,
        f"loss.teacher.weights {teacher.weights!r} has seen images by encoder {(there or '')[:12]}"
        f"..., data.images.store has those of {here.encoder!r} ({here.encoder_sha256[:12]}...): a "
        "teacher's images must be the student's",
    )
