"""What a compiled step moves between chips: every collective, its bytes, and how often it runs.

Counted as "bytes of the full tensor x executions per step and chip". On TPU an asynchronous
collective is a chain of fusions that each hold a clone of it, of which the start counts; a
reduce-scatter is often an all-reduce within an `all-reduce-scatter` fusion; and what crosses slices
goes through a send and a recv to the runtime (megascale). All observed in texts of libtpu 0.0.52.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gemma_train.planning.places import Place, Places
from gemma_train.planning.program import Buffer, Computation, Instruction, Program, Site, read
from gemma_train.planning.replica_groups import axes_of, group_of, slices_of

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all"]
Network = Literal["ici", "dcn"]  # within a slice; between slices

_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_KIND_OF_TRANSFER: dict[str, Kind] = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ONE_TO_ONE": "collective-permute",
    "ALL_TO_ALL": "all-to-all",
}
_UNINFORMATIVE = {"while", "body", "eval_jaxpr", "closed_call"}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program."""

    kind: Kind
    network: Network
    place: Place
    dtype: str  # HLO's, as bf16
    shape: tuple[int, ...]  # of the full tensor; of the largest where several go together
    full_bytes: int  # of the full tensors, once: the larger of operand and result
    group: int  # devices of one group; of a dcn transfer, the slices that it joins
    axes: tuple[str, ...]  # mesh axes that it runs over, () where they are not recognised
    executions: int  # per step
    source: str  # JAX's path to the operation, shortened; the runtime's name of a dcn transfer
    in_loop: bool  # within the body of any loop: layers, microbatches, chunks of the loss

    @property
    def step_bytes(self) -> int:
        """Bytes of the full tensors, per step and chip."""
        return self.full_bytes * self.executions

    @property
    def wire_bytes(self) -> float:
        """Bytes a chip sends over links in one execution, around a ring of the group.

        Each member sends all but one of the group's parts, or both ways of an all-reduce; a
        permutation sends the tensor.
        """
        rest = (self.group - 1) / self.group
        match self.kind:
            case "collective-permute":
                return float(self.full_bytes)
            case "all-reduce":
                return 2 * rest * self.full_bytes
            case _:
                return rest * self.full_bytes

    @property
    def step_wire_bytes(self) -> float:
        """Bytes a chip sends over links per step."""
        return self.wire_bytes * self.executions


@dataclass(frozen=True, kw_only=True)
class Total:
    """A row of the table of collectives."""

    kind: Kind
    network: Network
    place: Place
    executions: int  # per step
    step_bytes: int  # of full tensors, per step and chip
    step_wire_bytes: float  # sent by a chip, per step


def collectives(
    program: str | Program, mesh_shape: Mapping[str, int] | None = None
) -> list[Collective]:
    """Every collective that a step runs, small sums of scalars included, in the program's order.

    `mesh_shape` gives each axis of the mesh its size, in order; axes are recognised with it alone.
    """
    program = read(program)
    places = Places(program)
    found = []
    for computation in program.computations.values():
        if program.executions[computation.name] and not _is_clone(program, computation):
            for instruction in computation.instructions.values():
                site = Site(computation=computation, instruction=instruction)
                if kind := _kind(site):
                    found.append(
                        _collective(program, site, kind, places.of(site), mesh_shape or {})
                    )
    return found


def totals(found: Iterable[Collective]) -> list[Total]:
    """Collectives summed by kind, network and place; the most bytes first."""
    rows: dict[tuple[Kind, Network, Place], list[Collective]] = {}
    for one in found:
        rows.setdefault((one.kind, one.network, one.place), []).append(one)
    table = [
        Total(
            kind=kind,
            network=network,
            place=place,
            executions=sum(one.executions for one in row),
            step_bytes=sum(one.step_bytes for one in row),
            step_wire_bytes=sum(one.step_wire_bytes for one in row),
        )
        for (kind, network, place), row in rows.items()
    ]
    return sorted(table, key=lambda row: -row.step_bytes)


def _kind(site: Site) -> Kind | None:
    """What kind of collective an instruction is, None if none; an asynchronous one at its start."""
    match site.instruction.opcode.removesuffix("-start"):
        case "all-reduce" if "all-reduce-scatter" in site.computation.name:
            return "reduce-scatter"  # of the sum each device keeps its part alone
        case "all-gather" | "reduce-scatter" | "all-reduce" | "collective-permute" as kind:
            return kind
        case "all-to-all" | "ragged-all-to-all":
            return "all-to-all"
        case "send" if _MEGASCALE in site.instruction.rest:
            return _KIND_OF_TRANSFER[_attribute(site.instruction, _TRANSFER)]
    return None


def _is_clone(program: Program, computation: Computation) -> bool:
    """Whether a computation holds a later clone of an asynchronous collective, begun elsewhere."""
    caller = next(program.calls_to(computation.name), None)
    return computation.name.startswith("async_collective_fusion") or (
        caller is not None and caller.instruction.name.startswith("async-collective-done")
    )


def _collective(
    program: Program, site: Site, kind: Kind, place: Place, mesh_shape: Mapping[str, int]
) -> Collective:
    attributes = site.instruction.rest
    if site.instruction.opcode == "send":
        network, group = "dcn", slices_of(attributes)
        axes = tuple(mesh_shape)[:1]  # slices lie along the first axis
    else:
        network, group = "ici", group_of(attributes, program.partitions)
        whole = kind != "collective-permute"
        axes = axes_of(group, mesh_shape, program.partitions, whole=whole)
    arrays = _full_arrays(site)
    largest = max(arrays, key=lambda array: array.bytes)
    return Collective(
        kind=kind,
        network=network,
        place=place,
        dtype=largest.dtype,
        shape=largest.shape,
        full_bytes=sum(array.bytes for array in arrays),
        group=len(group),
        axes=axes,
        executions=program.executions[site.computation.name],
        source=_shortened(program.path(site)) or _attribute(site.instruction, _RENDEZVOUS),
        in_loop=any(call.is_loop for call in program.calls_to(site.computation.name)),
    )


def _full_arrays(site: Site) -> list[Buffer]:
    """The larger of each operand and its result: of a gather the result, of a scatter the operand.

    A transfer between slices is a send, which has the operand, and a recv, which has the result.
    """
    instructions, instruction = site.computation.instructions, site.instruction
    operands = [
        array
        for name in instruction.operands
        if name in instructions
        for array in instructions[name].arrays
    ]
    results = instruction.arrays
    if instruction.opcode == "send":
        rendezvous = _attribute(instruction, _RENDEZVOUS)
        results = next(
            other.arrays
            for other in instructions.values()
            if other.opcode == "recv" and _attribute(other, _RENDEZVOUS) == rendezvous
        )
    elif instruction.opcode.endswith("-start") and len(results) >= 2 * len(operands):
        results = results[len(operands) :]  # most starts give their operands, then the results
    pairs = zip(operands, results, strict=False)  # behind the results stand semaphores
    return [max(pair, key=lambda array: array.bytes) for pair in pairs]


def _attribute(instruction: Instruction, pattern: re.Pattern[str]) -> str:
    found = pattern.search(instruction.rest)
    return found[1] if found else ""


def _shortened(path: str) -> str:
    """A path without the parts that all paths share."""
    parts = path.split("/")
    if len(parts) > 1 and parts[0].startswith("jit("):
        parts = parts[1:]
    return "/".join(part for part in parts if part not in _UNINFORMATIVE)
