"""What a chip sends in a step: read off the compiled program, or expected where there is none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gemma_train.config import RunConfig
from gemma_train.planning.collectives import Total
from gemma_train.planning.memory import (
    BFLOAT16,
    FLOAT32,
    StateBytes,
    kept_bytes,
    layer_parameters,
    table_parts,
)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that a chip sends in a step: within its slice, between slices, to its host."""

    ici_bytes: float
    dcn_bytes: float
    host_bytes: float = 0.0


def compiled_traffic(totals: Iterable[Total], *, host_bytes: float) -> Traffic:
    """The bytes of a compiled program's collectives; those to the host are given."""
    sent = {"ici": 0.0, "dcn": 0.0}
    for total in totals:
        sent[total.network] += total.step_wire_bytes
    return Traffic(ici_bytes=sent["ici"], dcn_bytes=sent["dcn"], host_bytes=host_bytes)


def expected_traffic(config: RunConfig, state: StateBytes) -> Traffic:
    """The bytes that the step's design asks for.

    Layers' weights are gathered forward and backward and their gradients scattered; the table's
    columns and rows likewise; chunks of tokens meet the chips that hold other rows; keys and
    values of global layers meet along seq; gradients are summed over replica on the shard;
    offloaded activations go to the host and come back.
    """
    model, mesh = config.model, config.mesh
    width = BFLOAT16 if config.compute.dtype == "bfloat16" else FLOAT32
    split, tokens = mesh.data * mesh.seq, config.step_tokens / mesh.devices
    parts = table_parts(config)
    passes = 2 if config.compute.remat == "none" else 3
    layers = passes * layer_parameters(model) * width * model.layers * (split - 1) / split
    table = 4 * model.vocabulary * model.width * width / math.isqrt(split) if split > 1 else 0
    chunks = 2 * tokens * (parts - 1) * model.width * width
    keys = 2 * model.key_value_heads * model.head_dimension * width
    gathered_keys = 3 * model.kinds.count("global") * tokens * (mesh.seq - 1) * keys
    within, slices = mesh.replica // mesh.slices, mesh.slices
    return Traffic(
        ici_bytes=config.accumulation * (layers + table)
        + chunks
        + gathered_keys
        + 2 * state.gradients * (within - 1) / within,
        dcn_bytes=2 * state.gradients * (slices - 1) / slices,
        host_bytes=2 * kept_bytes(config, config.compute.offloaded),
    )
