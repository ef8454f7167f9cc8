"""What a compiled step must not do, as figures beside their limits: read off the program alone.

Each gate stands for a way in which a partitioner goes wrong in silence: a gradient summed whole
where a part would do, weights gathered before the cast or once too often, logits or table in one
piece, a sum between slices of more than a shard. Limits follow from the design (zero3.py,
kernels/vocabulary/loss.py) and from the config; nothing is estimated.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gemma_train.config import RunConfig
from gemma_train.kernels.vocabulary.soft_target import block_length
from gemma_train.metrics.wording import byte_count
from gemma_train.model.flops import parameter_count
from gemma_train.planning.collectives import Collective, collectives
from gemma_train.planning.compiled import Compiled
from gemma_train.planning.memory import (
    FLOAT32,
    chip_tokens,
    padded_gradient_bytes,
    state_bytes,
    summed_scale_bytes,
    table_parts,
)
from gemma_train.planning.program import Buffer, Program, read
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import expected_gathers, teacher_gathers, vocabulary_sums
from gemma_train.teachers.online import online, teacher_model

LARGEST_ALL_REDUCE = 64 * 2**20  # bytes of one plain all-reduce inside a scan body
ALL_REDUCE_SHARE = 0.02  # of the bf16 weights: plain all-reduces of a step that are not known
SLACK = 1.02  # padding of tiles, and figures of a few tokens
LARGEST_PADDING = 1.7  # of shards to whole tiles; a second sum would be 2
SMALL = 2**20  # bytes of a step that are no weight's: what a small model is allowed at least


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure of a compiled step beside the most that it may be."""

    name: str
    found_bytes: float
    limit_bytes: float
    worst: str = ""  # what makes up most of it

    @property
    def holds(self) -> bool:
        return self.found_bytes <= self.limit_bytes

    @property
    def told(self) -> str:
        """In one line: the figure, its limit, and what is to blame."""
        found, limit = (byte_count(size) for size in (self.found_bytes, self.limit_bytes))
        return f"{self.name}: {found}, at most {limit}" + (f" ({self.worst})" if self.worst else "")


def gates(config: RunConfig, slices: Slices, compiled: Compiled) -> list[Gate]:
    """Every gate of the step of `config`, compiled for `slices`."""
    program = read(compiled.program)
    found = collectives(program, config.mesh.axis_sizes)
    return [
        *all_reduce_gates(config, found),
        float32_gather_gate(config, found),
        gather_gate(config, found),
        between_slices_gate(config, found),
        *vocabulary_gates(config, program),
        Gate(
            name="peak of HBM",
            found_bytes=compiled.peak_bytes,
            limit_bytes=slices.chip.usable_hbm_bytes,
            worst=f"of a {slices.chip.generation} chip",
        ),
    ]


def weight_bytes(config: RunConfig) -> int:
    """Bytes of all parameters in the compute dtype, once."""
    return config.compute.bytes * parameter_count(config.model)


def all_reduce_gates(config: RunConfig, found: Iterable[Collective]) -> list[Gate]:
    """Plain all-reduces, but for those that are meant: of shards over replica, once a step.

    Meant too, and allowed on top, are the figures of tokens that chips with other rows of the table
    sum. Left are sums of losses and of the gradients of norms. A weight's gradient among them would
    travel whole, twice around the ring; within a scan's body, once a turn.
    """
    plain = [one for one in found if one.kind == "all-reduce" and not _is_replica_sum(config, one)]
    in_scans = [one for one in plain if one.in_loop or one.place != "outside"]
    largest = max(in_scans, key=lambda one: one.full_bytes, default=None)
    return [
        Gate(
            name="largest all-reduce",
            found_bytes=largest.full_bytes if largest else 0,
            limit_bytes=LARGEST_ALL_REDUCE,
            worst=_named(largest),
        ),
        Gate(
            name="all-reduces of a step",
            found_bytes=sum(one.step_bytes for one in plain),
            limit_bytes=max(ALL_REDUCE_SHARE * weight_bytes(config), SMALL)
            + vocabulary_sums(config),
            worst=_most(plain),
        ),
    ]


def _is_replica_sum(config: RunConfig, one: Collective) -> bool:
    """Whether it sums shards of gradients over replica as the design asks.

    That is once a step; of the table once a microbatch, for the loss gives it summed.
    """
    if one.axes != ("replica",) or one.place != "outside":
        return False
    table = _table_shard_bytes(config)
    is_of_table = table <= FLOAT32 * math.prod(one.shape) <= SLACK * table
    once = one.executions == 1 and not one.in_loop
    return once or (is_of_table and one.executions <= config.accumulation)


def float32_gather_gate(config: RunConfig, found: Iterable[Collective]) -> Gate:
    """The largest all-gather of float32: stacked norm scales and a chunk's token weights may be.

    So may the weights of a chunk's candidates, where the step computes in float32, and the summed
    gradients of norms, for a sum over all chips of an axis is a scatter and a gather. A weight that
    is gathered ahead of its cast travels twice as wide. What is gathered over
    replica alone is no weight, for none is split over it: XLA sums large shards between slices in
    parts, and gathers these within each. A teacher may be of float32.
    """
    teacher, own = online(config), config.model
    models = [model for model in (own, teacher_model(config)) if model]
    scales = max(math.ceil(model.layers / len(model.pattern)) * model.width for model in models)
    if teacher is not None and teacher.dtype == "float32":
        scales = max(model.vocabulary * model.width for model in models[1:])
    chunk = min(config.loss.chunk, chip_tokens(config)) * table_parts(config)
    if config.compute.bytes == FLOAT32:
        chunk *= max(config.candidates, 1)
    wide = [
        one
        for one in found
        if one.kind == "all-gather" and one.dtype == "f32" and one.axes != ("replica",)
    ]
    largest = max(wide, key=lambda one: one.full_bytes, default=None)
    return Gate(
        name="largest all-gather of float32",
        found_bytes=largest.full_bytes if largest else 0,
        limit_bytes=max(FLOAT32 * scales, FLOAT32 * chunk, summed_scale_bytes(config)),
        worst=_named(largest),
    )


def gather_gate(config: RunConfig, found: Iterable[Collective]) -> Gate:
    """All-gathers of a step against what the design asks for."""
    gathers = [one for one in found if one.kind == "all-gather"]
    return Gate(
        name="all-gathers of a step",
        found_bytes=sum(one.step_bytes for one in gathers),
        limit_bytes=SLACK * (expected_gathers(config).total + teacher_gathers(config).total)
        + SMALL,
        worst=_most(gathers),
    )


def between_slices_gate(config: RunConfig, found: Iterable[Collective]) -> Gate:
    """Bytes between slices against the float32 gradients that a chip keeps: summed once.

    Of the table once a microbatch, for the loss gives it summed. A shard travels in whole tiles:
    of 10 rows as 16.
    """
    between = [one for one in found if one.network == "dcn"]
    once = min(padded_gradient_bytes(config), LARGEST_PADDING * state_bytes(config).gradients)
    again = (config.accumulation - 1) * _table_shard_bytes(config)
    return Gate(
        name="bytes between slices",
        found_bytes=sum(one.step_bytes for one in between),
        limit_bytes=SLACK * (once + again) + SMALL,
        worst=_most(between),
    )


def _table_shard_bytes(config: RunConfig) -> float:
    """The float32 gradient of the table that a chip keeps."""
    table = FLOAT32 * config.model.vocabulary * config.model.width
    return table / (config.mesh.data * config.mesh.seq)


def vocabulary_gates(config: RunConfig, program: str | Program) -> list[Gate]:
    """No table in one piece, and no more logits at one time than a chunk's.

    Arrays are known by an axis of the vocabulary's length, or of the rows that a chip holds; soft
    targets by two, the blocks of those rows and the rows of a block. Where another axis is as long
    as the vocabulary, be it of tokens or of a weight, its arrays look like the table: nothing is
    said of it then.
    """
    teacher, model, split = online(config), config.model, config.mesh.data * config.mesh.seq
    models = [one for one in (model, teacher_model(config)) if one]
    parts = {one.width: table_parts(config, one) for one in models}
    lengths = {model.vocabulary // part for part in (1, *parts.values())}
    rows = model.vocabulary // table_parts(config)
    blocks = math.ceil(rows / block_length(rows)), block_length(rows)
    arrays = [
        array
        for array in set(read(program).held_arrays())
        if lengths.intersection(array.shape)
        or (config.candidates and len(array.shape) == 3 and array.shape[1:] == blocks)
    ]
    of_table = {
        model.vocabulary * width // part
        for width, rows in parts.items()
        for part in (1, rows, split // rows, split)
    }
    if teacher is not None and teacher.sharding == "whole":  # its table is meant to be whole
        parts = {model.width: parts[model.width]} if models[1].width != model.width else {}
    tables = {model.vocabulary * width: part for width, part in parts.items() if part > 1}
    whole = [
        array
        for array in arrays
        if (part := tables.get(array.elements))
        and (
            model.vocabulary in array.shape
            or {part, model.vocabulary // part}.issubset(array.shape)
        )
    ]
    logits = [array for array in arrays if array.elements not in of_table]
    tokens = chip_tokens(config)
    chunk = min(config.loss.chunk, tokens)
    # Soft targets come in whole blocks, of every chip's rows.
    ids = math.prod(blocks) * table_parts(config) if config.candidates else model.vocabulary
    found = [_array_gate("logits at one time", logits, FLOAT32 * chunk * ids)]
    others = [tokens, tokens * config.accumulation, chunk * table_parts(config)]
    for one in models:
        heads = one.query_heads, one.key_value_heads, 2 * one.key_value_heads
        others += [one.hidden, 2 * one.hidden, *(one.head_dimension * count for count in heads)]
    if model.vocabulary not in others:
        found.insert(0, _array_gate("[vocabulary, width] in one piece", whole, 0))
    return found


def _array_gate(name: str, arrays: list[Buffer], limit_bytes: float) -> Gate:
    largest = max(arrays, key=lambda array: array.bytes, default=None)
    return Gate(
        name=name,
        found_bytes=largest.bytes if largest else 0,
        limit_bytes=limit_bytes,
        worst=f"{largest.dtype}{list(largest.shape)}" if largest else "",
    )


def _most(found: list[Collective]) -> str:
    return _named(max(found, key=lambda one: one.step_bytes, default=None))


def _named(one: Collective | None) -> str:
    if one is None:
        return ""
    over = " x ".join(one.axes) or f"{one.group} chips"
    return f"{one.executions} x {one.dtype}{list(one.shape)} over {over}, {one.place}"
