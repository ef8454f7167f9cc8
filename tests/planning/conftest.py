"""A small run for a pod, and its plan counted without compiling."""

import pytest


@pytest.fixture(scope="session")
def pod_run(run_on_chips):
    """Makes the config of Gemma 3 1B on two slices of sixteen v5e, changed by dotted names."""
    from gemma_train.config import MeshConfig
    from gemma_train.model.sizes import GEMMA3_1B

    mesh = MeshConfig(replica=2, data=16, topology="v5e:4x4", slices=2)
    return run_on_chips(GEMMA3_1B, mesh, length=8192, rows=64, steps=1000)


@pytest.fixture(scope="session")
def plan_of():
    """Makes the plan of a config, from what a compiler found or counted alone."""
    from gemma_train.planning.cost import CostConfig
    from gemma_train.planning.estimate import Assumptions
    from gemma_train.planning.plan import make_plan
    from gemma_train.planning.slices import Slices

    def make(config, compiled=None, cost=None):
        slices = Slices.named(config.mesh.topology, config.mesh.slices)
        return make_plan(
            config,
            compiled,
            slices=slices,
            name="pod",
            assume=Assumptions(),
            cost_inputs=cost or CostConfig(),
        )

    return make


@pytest.fixture(scope="session")
def total_of():
    """Makes a row of the table of collectives, of a network and the bytes it sends."""
    from gemma_train.planning.collectives import Total

    def make(network: str, sent: float) -> Total:
        return Total(
            kind="all-gather",
            network=network,
            place="forward",
            executions=26,
            step_bytes=int(2 * sent),
            step_wire_bytes=sent,
        )

    return make
