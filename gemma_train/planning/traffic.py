"""What a chip sends in a step: read off the compiled program, or expected where there is none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gemma_train.config import RunConfig
from gemma_train.losses.distillation import Distillation
from gemma_train.model.config import GemmaConfig
from gemma_train.planning.attention_traffic import attention_traffic
from gemma_train.planning.collectives import Total
from gemma_train.planning.memory import (
    BYTES,
    FLOAT32,
    INT32,
    StateBytes,
    chip_tokens,
    kept_bytes,
    layer_parameters,
    stored_bytes,
    table_parts,
)
from gemma_train.samplers import Counts, Multinomial, Priority
from gemma_train.teachers.online import online, teacher_model


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of a step that a chip sends within its slice, between slices, to and from its host."""

    ici_bytes: float
    dcn_bytes: float
    host_bytes: float = 0.0


def compiled_traffic(totals: Iterable[Total], *, host_bytes: float) -> Traffic:
    """The bytes of a compiled program's collectives; those to the host are given."""
    sent = {"ici": 0.0, "dcn": 0.0}
    for total in totals:
        sent[total.network] += total.step_wire_bytes
    return Traffic(ici_bytes=sent["ici"], dcn_bytes=sent["dcn"], host_bytes=host_bytes)


@dataclass(frozen=True, kw_only=True)
class Gathers:
    """Bytes of full tensors that the design gathers in a step, per chip."""

    layers: float  # weights, forward and where remat needs them again, hop by hop
    table: float  # its rows for the look-up, its columns for the loss
    tokens: float  # every token, for the chips that hold other rows of the table
    keys: float  # keys and values of global layers, as often as weights
    candidates: float = 0.0  # every token's soft target, for the same chips

    @property
    def total(self) -> int:
        return math.ceil(self.layers + self.table + self.tokens + self.keys + self.candidates)


def expected_gathers(config: RunConfig) -> Gathers:
    """What a step of `config` gathers, all its microbatches together."""
    passes = 1 if config.compute.remat == "none" else 2
    width, rows = config.compute.bytes, table_parts(config)
    found = _gathers(config, config.model, width=width, passes=passes, beside=8)
    if rows == 1 or not isinstance(config.loss, Distillation):
        return found
    # An id and a weight each, and how much the text's own token weighs.
    a_token = config.candidates * (INT32 + FLOAT32) + FLOAT32
    tokens = config.step_tokens / config.mesh.devices
    return replace(
        found, tokens=config.loss.passes * found.tokens, candidates=tokens * rows * a_token
    )


def teacher_gathers(config: RunConfig) -> Gathers:
    """What a teacher in the step adds: its forward pass."""
    teacher, model = online(config), teacher_model(config)
    if teacher is None or model is None:
        return Gathers(layers=0, table=0, tokens=0, keys=0)
    found = _gathers(config, model, width=BYTES[teacher.dtype], passes=1, beside=4)
    if teacher.sharding == "whole":
        return replace(found, layers=0, table=0, tokens=0)
    return found


def vocabulary_sums(config: RunConfig) -> int:
    """Bytes of full tensors that chips with other rows of the table sum in a step, per chip.

    They are figures of tokens (kernels/vocabulary/chunk.py): the largest logit, the softmax's
    denominator and the target's logit; of a soft target also its product with the logits and its
    mass, and once more the softmax where it is of other logits than the cross-entropy's. A teacher
    in the step sums what its sampler asks for.
    """
    loss, teacher, model = config.loss, online(config), teacher_model(config)
    tokens = chip_tokens(config)
    chunk = min(loss.chunk, tokens)
    padded = math.ceil(tokens / chunk) * chunk * config.accumulation

    def bytes_of(figures: int, rows: int) -> int:
        return FLOAT32 * figures * rows * padded if rows > 1 else 0

    if not isinstance(loss, Distillation):
        return bytes_of(3, table_parts(config))
    figures = 5 if loss.is_mixed else 7 + 5 * (loss.passes - 1)
    found = bytes_of(figures, table_parts(config))
    if teacher is None or model is None or teacher.sharding == "whole":
        return found
    match loss.sampler:
        case Priority():
            figures = 2
        case Multinomial() | Counts():
            figures = 1
        case _:
            figures = 0
    return found + bytes_of(figures, table_parts(config, model))


def _gathers(
    config: RunConfig, model: GemmaConfig, *, width: int, passes: int, beside: int
) -> Gathers:
    """Of numbers of `width` bytes; `beside` a token's states go so many bytes to the vocabulary."""
    mesh = config.mesh
    rows, split = table_parts(config, model), mesh.data * mesh.seq
    tokens = config.step_tokens / mesh.devices  # of a chip, all microbatches
    table = model.vocabulary * model.width * width
    tables = (table * rows / split if rows > 1 else 0) + (table / rows if split > rows else 0)
    layers = passes * model.layers * layer_parameters(model) * width * hops(config)
    keys = 2 * model.key_value_heads * model.head_dimension * width
    far = model.kinds.count("global")
    return Gathers(
        layers=config.accumulation * layers,
        table=config.accumulation * tables,
        tokens=tokens * rows * (model.width * width + beside) if rows > 1 else 0.0,
        keys=passes * far * tokens * mesh.seq * keys if mesh.seq > 1 else 0.0,
    )


def hops(config: RunConfig) -> float:
    """A weight's all-gathers together, over its size: 1 + 1 / (the larger axis), for two axes."""
    sizes = sorted(size for axis, size in config.mesh.axis_sizes.items() if axis != "replica")
    sizes = [size for size in sizes if size > 1]
    return sum(1 / math.prod(sizes[number + 1 :]) for number in range(len(sizes)))


def expected_traffic(config: RunConfig, state: StateBytes) -> Traffic:
    """The bytes that the step's design asks for.

    What is gathered is sent but for a chip's own part, and sent back once as a gradient; so is what
    neighbours along seq exchange. Gradients are summed over replica on the shard; offloaded
    activations go to the host and come back; a store's candidates come from it.
    """
    mesh, gathered = config.mesh, expected_gathers(config)
    split, rows = mesh.data * mesh.seq, table_parts(config)
    passes = 1 if config.compute.remat == "none" else 2
    with_gradient = (passes + 1) / passes  # of what is gathered in every pass
    # In hops a chip still receives each other chip's part of a weight once.
    layers = with_gradient * gathered.layers / max(hops(config), 1) * (split - 1) / split
    table = 2 * gathered.table
    tokens = (2 * gathered.tokens + gathered.candidates) * (rows - 1) / rows
    within, slices = mesh.replica // mesh.slices, mesh.slices
    return Traffic(
        ici_bytes=layers
        + table
        + tokens
        + attention_traffic(config).sent_bytes
        + _teacher_bytes(config)
        + 2 * state.gradients * (within - 1) / within,
        dcn_bytes=2 * state.gradients * (slices - 1) / slices,
        host_bytes=2 * kept_bytes(config, config.compute.offloaded) + stored_bytes(config),
    )


def _teacher_bytes(config: RunConfig) -> float:
    """What a chip sends for a teacher in the step: what is gathered, but for its own part."""
    gathered, mesh = teacher_gathers(config), config.mesh
    split = mesh.data * mesh.seq
    weights = gathered.layers / max(hops(config), 1) + gathered.table
    return (weights + gathered.tokens) * (split - 1) / split + gathered.keys * (
        mesh.seq - 1
    ) / mesh.seq
