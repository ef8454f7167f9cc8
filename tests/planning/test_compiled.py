"""The step on the TPU compiler: its memory, its program, and its refusals."""

import os

import pytest

from gemma_train.planning.compiled import Compiled, TooLarge, needed_and_available
from gemma_train.planning.memory import state_bytes
from gemma_train.planning.slices import Slices
from gemma_train.silence import silenced_standard_error

TINY = {
    "model__vocabulary": 512,
    "model__width": 128,
    "model__layers": 1,
    "model__query_heads": 1,
    "model__head_dimension": 128,
    "model__hidden": 256,
    "data__sequence_length": 256,
    "data__batch_rows": 8,
    "mesh__topology": "v5e:2x2",
    "mesh__slices": 1,
    "mesh__replica": 1,
    "mesh__data": 4,
}

REFUSAL = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (15.90G) exceeds available HBM (15.75G). HLO module: jit_step."
)


def test_the_real_step_compiles_and_holds_at_least_its_state(pod_run, compiled_step):
    config = pod_run(**TINY)
    found = compiled_step(config)
    assert isinstance(found, Compiled)
    state = state_bytes(config)
    assert found.peak_bytes > state.parameters + state.moments
    assert state.parameters + state.moments <= found.argument_bytes < found.peak_bytes
    assert found.program.startswith("HloModule jit_step")
    assert "num_partitions=4" in found.program


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_a_step_that_is_too_large_is_a_result_and_the_table_knows_the_limit(
    topology, pod_run, compiled_step
):
    found = compiled_step(pod_run(**TINY | {"data__batch_rows": 2**20, "mesh__topology": topology}))
    assert isinstance(found, TooLarge)
    assert found.needed_bytes > found.available_bytes
    assert found.available_bytes == Slices.named(topology).chip.usable_hbm_bytes


def test_the_compilers_refusal_says_how_much_it_needed():
    assert needed_and_available(REFUSAL) == (int(15.9 * 2**30), int(15.75 * 2**30))
    tera = needed_and_available(REFUSAL.replace("15.90G", "1.02T"))
    assert tera == (int(1.02 * 2**40), int(15.75 * 2**30))
    assert needed_and_available(REFUSAL.replace("RESOURCE_EXHAUSTED", "INTERNAL")) is None
    assert needed_and_available("RESOURCE_EXHAUSTED: out of some other thing") is None


def test_native_chatter_is_kept_from_the_screen_unless_something_fails(capfd):
    with silenced_standard_error():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError), silenced_standard_error():
        os.write(2, b"a real cause\n")
        raise ValueError
    assert capfd.readouterr().err == "a real cause\n"
