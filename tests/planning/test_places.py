"""Where operations belong: by their paths, by the loop around them, by their neighbours."""

import pytest

from gemma_train.planning.places import Place, Places
from gemma_train.planning.program import Site, read

FORWARD = "jit(step)/jvp()/while/body/eval_jaxpr/reshard"
BACKWARD = (
    "jit(step)/transpose(jvp())/while/body/eval_jaxpr/checkpoint/rematted_computation/reshard"
)
CHUNK = "jit(step)/jvp()/shard_map/while/body/eval_jaxpr/cd,vd->cv/dot_general"
LOOKUP = "jit(step)/jvp()/gather"


def add(name: str, path: str = "", operand: str = "p") -> str:
    metadata = f', metadata={{op_name="{path}"}}' if path else ""
    return f"  %{name} = f32[8] add(%{operand}, %{operand}){metadata}\n"


def block(name: str, *lines: str) -> str:
    return f"%{name} (p: f32[8]) -> f32[8] {{\n{''.join(lines)}}}\n\n"


def turn(body: str) -> str:
    known = 'backend_config={"known_trip_count":{"n":"4"}}'
    return f"  %while.{body} = f32[8] while(%p), condition=%on, body=%{body}, {known}\n"


# Two scans over layers within a loop over microbatches that holds a turn of its own and nameless
# operations; a loss in chunks; and in every body one operation without a path.
STEP = (
    "HloModule jit_step, num_partitions=16\n\n"
    + block("on", "  ROOT %less = pred[] parameter(0)\n")
    + block("chunks", add("chunk", CHUNK), add("chunk.lost"))
    + block("forward", *(add(f"f{i}", FORWARD) for i in range(20)), add("f.lost"))
    + block("backward", *(add(f"b{i}", BACKWARD) for i in range(60)), add("b.lost"))
    + block(
        "microbatches",
        *(turn(body) for body in ("forward", "chunks", "backward")),
        *(add(f"peeled{i}", BACKWARD) for i in range(30)),
        add("sum.lost"),
        add("peeled.lost", operand="peeled3"),
        add("peeled.used"),
        add("peeled.user", BACKWARD, operand="peeled.used"),
        add("after.lost", operand="while.backward"),
    )
    + "ENTRY %main (p: f32[8]) -> f32[8] {\n"
    + turn("microbatches")
    + add("lookup", LOOKUP)
    + add("update", "jit(step)/mul")
    + "}\n"
)


@pytest.mark.parametrize(
    ("computation", "instruction", "place"),
    [
        ("forward", "f0", "forward"),
        ("forward", "f.lost", "forward"),
        ("backward", "b0", "backward"),
        ("backward", "b.lost", "backward"),
        ("chunks", "chunk", "outside"),
        ("chunks", "chunk.lost", "outside"),
        ("microbatches", "sum.lost", "outside"),
        ("microbatches", "peeled3", "backward"),
        ("microbatches", "peeled.lost", "backward"),
        ("microbatches", "peeled.used", "backward"),
        ("microbatches", "after.lost", "outside"),
        ("main", "lookup", "outside"),
        ("main", "update", "outside"),
    ],
)
def test_an_operation_is_placed(computation: str, instruction: str, place: Place):
    program = read(STEP)
    there = program.computations[computation]
    site = Site(computation=there, instruction=there.instructions[instruction])
    assert Places(program).of(site) == place


def test_a_program_that_is_not_differentiated_has_no_places():
    text = "ENTRY %main (p: f32[8]) -> f32[8] {\n" + add("a", "jit(f)/while/body/add") + "}\n"
    program = read(text)
    there = program.computations["main"]
    site = Site(computation=there, instruction=there.instructions["a"])
    assert Places(program).of(site) == "outside"
