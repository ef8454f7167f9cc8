"""The runs of the Gemma 3 report and the cases of the benchmark, on their real meshes, shallow.

Seven layers of the real sizes carry the same collectives a layer as all of them: minutes for all.
"""

import pytest

from benchmarks.pod_cases import CASES, LONG, TABLE_2
from gemma_train.config import load
from gemma_train.planning.attention_traffic import attention_traffic
from gemma_train.planning.collectives import Collective, collectives
from gemma_train.planning.compiled import Compiled
from gemma_train.planning.gates import gates
from gemma_train.planning.memory import BFLOAT16, layer_parameters
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import hops

pytestmark = pytest.mark.slow

RUNS = {case: CASES[case].config for case in CASES} | {
    name: load(f"configs/{name}.py") for name in TABLE_2 + LONG
}


@pytest.mark.parametrize("name", RUNS)
def test_every_gate_holds(name, shallow, compiled_step):
    config = shallow(RUNS[name])
    compiled = compiled_step(config)
    assert isinstance(compiled, Compiled), f"{name} does not fit"
    slices = Slices.named(config.mesh.topology, config.mesh.slices)
    found = gates(config, slices, compiled)
    assert [gate.told for gate in found if not gate.holds] == []


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].config.mesh.seq == 1])
def test_layers_are_gathered_twice_and_scattered_once(name, shallow, compiled_step):
    config = shallow(RUNS[name])
    found = collectives(compiled_step(config).program, config.mesh.axis_sizes)
    pattern = len(config.model.pattern)
    scanned = config.model.layers // pattern * pattern  # what is left over runs outside the scan
    once = hops(config) * BFLOAT16 * scanned * layer_parameters(config.model)

    def moved(kind: str) -> int:
        return sum(one.step_bytes for one in found if one.kind == kind and one.place != "outside")

    assert moved("all-gather") == 2 * once
    # Padded to the tiles of TPUs: of A's, ten rows a chip to sixteen in the second hop.
    assert once <= moved("reduce-scatter") <= 1.03 * once


def is_of_attention(config, one: Collective) -> bool:
    """Whether it moves keys and values, or queries: along seq, with heads as its last axes."""
    model = config.model
    heads = (model.key_value_heads, model.query_heads)
    return one.axes == ("seq",) and one.shape[-2:] in {(n, model.head_dimension) for n in heads}


@pytest.mark.parametrize("name", [name for name in RUNS if RUNS[name].mesh.seq > 1])
def test_attention_sends_along_seq_what_it_is_counted_to(name, shallow, compiled_step):
    config = shallow(RUNS[name])
    found = collectives(compiled_step(config).program, config.mesh.axis_sizes)
    mine = [one for one in found if is_of_attention(config, one)]
    sent = sum(one.step_wire_bytes for one in mine)
    expected = attention_traffic(config)
    assert sent == pytest.approx(expected.sent_bytes, rel=0.02)
    # As many gathers as global layers ask for: local ones have none. No gradient is all-reduced.
    gathers = [one for one in mine if one.kind in ("all-gather", "reduce-scatter")]
    gathered = sum(one.step_wire_bytes for one in gathers)
    assert gathered == pytest.approx(expected.gathered_bytes, rel=0.02)
    assert not [one for one in mine if one.kind == "all-reduce"]
    # Of the whole depth, five local layers to a global one:
    whole = attention_traffic(RUNS[name])
    if name not in CASES:
        assert whole.sent_bytes <= 0.25 * whole.everything_bytes
    assert whole.busiest == 1.0
