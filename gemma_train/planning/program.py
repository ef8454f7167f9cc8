"""A compiled program's text, read once: its computations, its loops, how often each part runs.

The text is XLA's HLO after all passes, as `jax.stages.Compiled.as_text()` gives it. A loop's body
stands in it once and runs as often as the loop turns, and a fusion's inside holds arrays that
memory never sees: so nothing can be counted line by line. Read in one pass, for the text of a large
model's step is tens of megabytes. Grammar: XLA, `xla/hlo/parser/hlo_parser.cc`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter

_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)(\(.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|\w+_computations?)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"\((\d+)\)")
_TUPLE_INDEX = re.compile(r"\), index=(\d+)")
_OP_NAME = re.compile(r'\bop_name="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """The type of one array, as a device holds it."""

    dtype: str  # HLO's, as bf16
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its elements, without the padding of a layout's tiles."""
        width = re.search(r"\d+", self.dtype)  # every numeric type has its bits in its name
        return math.ceil(self.elements * (int(width[0]) if width else 8) / 8)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    opcode: str
    type: str  # as printed: a tuple's members and every layout included
    rest: str  # the line from the operands' opening parenthesis on

    @property
    def arrays(self) -> list[Buffer]:
        """What it gives: one array, or those of a tuple. Tokens are none."""
        return [
            Buffer(dtype=dtype, shape=tuple(map(int, sizes.split(","))) if sizes else ())
            for dtype, sizes in _ARRAY.findall(self.type)
        ]

    @property
    def operands(self) -> list[str]:
        """The names of the instructions whose results it takes."""
        return _NAME.findall(self.rest.partition("), ")[0])

    @property
    def op_name(self) -> str:
        """JAX's path to the operation it was made from; "" where XLA kept none."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""


@dataclass(frozen=True, kw_only=True)
class Computation:
    """A block of instructions by name, in the order in which they are printed."""

    name: str
    instructions: dict[str, Instruction]


@dataclass(frozen=True, kw_only=True)
class Site:
    """An instruction and the computation in which it stands."""

    computation: Computation
    instruction: Instruction


@dataclass(frozen=True, kw_only=True)
class Call:
    """One instruction of `caller` that runs `computation` so many times each time it runs."""

    caller: str
    instruction: Instruction
    computation: str
    times: int

    @property
    def is_loop(self) -> bool:
        return self.instruction.opcode == "while"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program: the same on every device, and on every slice where there are several."""

    entry: str
    partitions: int  # devices of one slice
    computations: dict[str, Computation]
    calls: tuple[Call, ...]

    @cached_property
    def executions(self) -> Counter[str]:
        """How often a run of the program runs each computation: the sum over all its calls.

        Every branch of a conditional counts, for any of them may be taken.
        """
        calls_of: dict[str, list[Call]] = {name: [] for name in self.computations}
        callers: dict[str, set[str]] = {name: set() for name in self.computations}
        for call in self.calls:
            calls_of[call.caller].append(call)
            callers[call.computation].add(call.caller)
        counts = Counter({self.entry: 1})
        for name in TopologicalSorter(callers).static_order():  # callers before those they call
            for call in calls_of[name]:
                counts[call.computation] += counts[name] * call.times
        return counts

    @cached_property
    def _first_calls(self) -> dict[str, Call]:
        return {call.computation: call for call in reversed(self.calls)}

    def calls_to(self, computation: str) -> Iterator[Call]:
        """The calls that lead to a computation, from the nearest outwards to the entry.

        Of several calls of one computation the first is followed.
        """
        while call := self._first_calls.get(computation):
            yield call
            computation = call.caller

    def carrier(self, site: Site) -> Site:
        """An instruction where it stands; for one inside a fusion, the outermost fusion."""
        for call in self.calls_to(site.computation.name):
            if call.instruction.opcode != "fusion":
                break
            caller = self.computations[call.caller]
            site = Site(computation=caller, instruction=call.instruction)
        return site

    def path(self, site: Site) -> str:
        """JAX's path to an instruction or to the fusion around it; "" where XLA kept none."""
        return site.instruction.op_name or self.carrier(site).instruction.op_name

    def held_arrays(self) -> Iterator[Buffer]:
        """The array types of all instructions outside fusions: those that memory may hold."""
        for name, computation in self.computations.items():
            if not any(call.instruction.opcode == "fusion" for call in self.calls_to(name)):
                for instruction in computation.instructions.values():
                    yield from instruction.arrays


def read(program: str | Program) -> Program:
    """The program of a text; one that was read already is given back as it is.

    Raises `ValueError` where the text has no entry computation.
    """
    if isinstance(program, Program):
        return program
    entry, computations = "", {}
    instructions: dict[str, Instruction] = {}
    for line in program.splitlines():
        if line.startswith(" "):
            if found := _INSTRUCTION.match(line):
                name, type_, opcode, rest = found.groups()
                instructions[name] = Instruction(name=name, opcode=opcode, type=type_, rest=rest)
        elif found := _COMPUTATION.match(line):
            is_entry, name = found.groups()
            instructions = {}
            computations[name] = Computation(name=name, instructions=instructions)
            entry = name if is_entry else entry
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    partitions = _PARTITIONS.search(program.partition("\n")[0])
    return Program(
        entry=entry,
        partitions=int(partitions[1]) if partitions else 1,
        computations=computations,
        calls=tuple(_calls(computations)),
    )


def shapes(program: str | Program) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array that memory may hold: what is inside a fusion is left out."""
    return {(array.dtype, array.shape) for array in read(program).held_arrays()}


def reshapes_of(program: str | Program, *shape: int) -> list[Buffer]:
    """The array types that memory may hold with as many elements as `shape`, in whatever form.

    A transpose, a flattening or a split of an axis does not hide an array from a gate that asks for
    none of [vocabulary, width]; another array of as many elements is found too.
    """
    wanted = math.prod(shape)
    return [array for array in set(read(program).held_arrays()) if array.elements == wanted]


def _calls(computations: dict[str, Computation]) -> Iterator[Call]:
    for computation in computations.values():
        for instruction in computation.instructions.values():
            if instruction.opcode.endswith(("-done", "-update")):
                continue  # the asynchronous call that names a computation again ran it at its start
            for name, times in _called(computation, instruction, computations):
                if name in computations:
                    yield Call(
                        caller=computation.name,
                        instruction=instruction,
                        computation=name,
                        times=times,
                    )


def _called(
    caller: Computation, instruction: Instruction, computations: dict[str, Computation]
) -> Iterator[tuple[str, int]]:
    """The names of the computations that an instruction runs, and how often it runs each."""
    if instruction.opcode == "while":
        body, condition = (find.search(instruction.rest) for find in (_BODY, _CONDITION))
        if body and condition:
            trips = _trips(caller, instruction, condition[1], computations)
            yield body[1], trips
            yield condition[1], trips + 1
        return
    for names in _CALLED.findall(instruction.rest):
        for name in _NAME.findall(names):
            yield name, 1


def _trips(
    caller: Computation, loop: Instruction, condition: str, computations: dict[str, Computation]
) -> int:
    """How often a loop's body runs: XLA's own count, or from the counter's start to its bound.

    The counter goes up by one, as that of every scan; it starts at 1 where XLA took a first turn
    out of the loop. A loop without a bound, which no training step has, counts once.
    """
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known[1])
    asked = [
        instruction
        for name in _with_fused(condition, computations)
        for instruction in computations[name].instructions.values()
        if instruction.type.startswith(("s32[]", "u32[]", "s64[]"))
    ]
    bounds = [bound for one in asked if (bound := _constant(one)) is not None]
    counters = [found for one in asked if (found := _TUPLE_INDEX.search(one.rest))]
    if not bounds or not counters:
        return 1
    return max(bounds) - _start(caller, loop, int(counters[0][1]))


def _start(caller: Computation, loop: Instruction, index: int) -> int:
    """The constant with which a loop's state begins at `index`; 0 where it is no constant."""
    state = caller.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return 0
    value = caller.instructions.get(state.operands[index])
    while value and value.opcode != "constant" and value.operands:
        value = caller.instructions.get(value.operands[0])  # through its copies
    return (value and _constant(value)) or 0


def _constant(instruction: Instruction) -> int | None:
    found = _CONSTANT.match(instruction.rest) if instruction.opcode == "constant" else None
    return int(found[1]) if found else None


def _with_fused(name: str, computations: dict[str, Computation]) -> Iterator[str]:
    """A computation and those that its instructions call, one level down."""
    if name in computations:
        yield name
        for instruction in computations[name].instructions.values():
            for names in _CALLED.findall(instruction.rest):
                yield from (called for called in _NAME.findall(names) if called in computations)
