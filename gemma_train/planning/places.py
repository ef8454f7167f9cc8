"""Where in a training step an operation belongs: the scan over layers, forward or backward, or not.

JAX names each operation by a path: `jvp(...)` stands in it for what is differentiated,
`transpose(jvp(...))` for its backward pass, `while/body` for a scan's body. XLA loses some paths;
then the loop tells, by those of the other operations in its body.
"""

import re
from collections import Counter
from functools import cached_property
from typing import Literal

from gemma_train.planning.program import Computation, Instruction, Program, Site

# The scan over layers' forward body, its backward body (recomputation included), or neither.
Place = Literal["forward", "backward", "outside"]

_DIFFERENTIATED = re.compile(r"(transpose\()?jvp\([^/]*/")
_SCAN = re.compile(_DIFFERENTIATED.pattern + r"((?:[^/]+/)*?)while/body/")
# XLA moves a few operations into a body that do not belong there. A loop over microbatches, which
# has no place, holds both directions: a backward pass is at most some five in six operations of it.
_NEARLY_ALL = 0.95


class Places:
    """The places of one program's operations."""

    def __init__(self, program: Program):
        self._program = program
        self._neighbours_in: dict[str, tuple[dict[str, Instruction], ...]] = {}

    def of(self, site: Site) -> Place:
        """By the instruction's own path, else by the nearest loop around it, else by neighbours.

        The last is for a turn that XLA took out of the scan, in programs of several slices.
        """
        path = self._program.path(site)
        if _DIFFERENTIATED.search(path):
            return self._of_path(path)
        for call in self._program.calls_to(site.computation.name):
            if call.is_loop and call.computation in self._of_loops:
                return self._of_loops[call.computation]
        return self._of_neighbours(self._program.carrier(site))

    def _of_neighbours(self, site: Site) -> Place:
        """By the nearest path up through first operands, else down through first users."""
        for neighbours in self._neighbours(site.computation):
            one: Instruction | None = site.instruction
            while one and not one.op_name and one.opcode != "while":
                one = neighbours.get(one.name)
            if one and _DIFFERENTIATED.search(one.op_name):
                return self._of_path(one.op_name)
        return "outside"

    def _neighbours(self, computation: Computation) -> tuple[dict[str, Instruction], ...]:
        """The first operand and the first user of each instruction, where it has one."""
        if computation.name not in self._neighbours_in:
            operands: dict[str, Instruction] = {}
            users: dict[str, Instruction] = {}
            for instruction in computation.instructions.values():
                for name in instruction.operands:
                    if name in computation.instructions:
                        operands.setdefault(instruction.name, computation.instructions[name])
                        users.setdefault(name, instruction)
            self._neighbours_in[computation.name] = operands, users
        return self._neighbours_in[computation.name]

    def _of_path(self, op_name: str) -> Place:
        found = _SCAN.search(op_name)
        if not found or found[2] != self._layers:
            return "outside"
        return "backward" if found[1] else "forward"

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """The paths of each computation's differentiated operations."""
        return {
            name: [
                instruction.op_name
                for instruction in computation.instructions.values()
                if _DIFFERENTIATED.search(instruction.op_name)
            ]
            for name, computation in self._program.computations.items()
        }

    @cached_property
    def _layers(self) -> str | None:
        """The path, within what is differentiated, to the scan over layers; None if there is none.

        It is the scan that has a backward pass, of several the one with most operations. A loss in
        chunks that makes its gradient on the way forward has none. A path outlives its loop: a scan
        of a single turn, which XLA dissolves, is found too.
        """
        forward, backward = Counter[str](), Counter[str]()
        for paths in self._paths.values():
            for found in filter(None, map(_SCAN.search, paths)):
                (backward if found[1] else forward)[found[2]] += 1
        both = forward.keys() & backward.keys()
        return max(both, key=lambda path: (backward[path], path), default=None)

    @cached_property
    def _of_loops(self) -> dict[str, Place]:
        """The place of each loop body of which nearly every operation, nested ones too, has one."""
        votes: dict[str, Counter[Place]] = {}
        for name, paths in self._paths.items():
            for call in self._program.calls_to(name):
                if call.is_loop:
                    votes.setdefault(call.computation, Counter()).update(map(self._of_path, paths))
        leaders = {body: counts.most_common(1)[0] for body, counts in votes.items() if counts}
        return {
            body: place
            for body, (place, count) in leaders.items()
            if place != "outside" and count >= _NEARLY_ALL * votes[body].total()
        }
