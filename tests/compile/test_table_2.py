"""The runs of the Gemma 3 report and the cases of the benchmark, on their real meshes, shallow.

Seven layers of the real sizes carry the same collectives a layer as all of them: minutes for all.
"""

import pytest

from benchmarks.pod_cases import CASES, TABLE_2
from gemma_train.config import load
from gemma_train.planning.collectives import collectives
from gemma_train.planning.compiled import Compiled
from gemma_train.planning.gates import gates
from gemma_train.planning.memory import BFLOAT16, layer_parameters
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import hops

pytestmark = pytest.mark.slow

RUNS = {case: CASES[case].config for case in CASES} | {
    name: load(f"configs/{name}.py") for name in TABLE_2
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
