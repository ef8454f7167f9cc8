"""Runs for TPUs that are small in depth, and the mesh that a program is compiled for."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def small_run(run_on_chips):
    """Makes a run on sixteen v5e whose sizes no two shapes share, changed by dotted names.

    Three layers of one kind: a scan with a first, a middle and a last turn, quick to compile.
    """
    from gemma_train.config import MeshConfig, NextToken
    from gemma_train.model.sizes import GEMMA3_1B

    model = replace(
        GEMMA3_1B,
        vocabulary=4 * 3 * 1259,
        width=1024,
        layers=3,
        query_heads=4,
        key_value_heads=2,
        head_dimension=128,
        hidden=2560,
        context=1024,
        pattern=("local",),
        window=256,
    )
    return run_on_chips(
        model,
        MeshConfig(data=16, topology="v5e:4x4"),
        length=1024,
        rows=16,
        steps=1000,
        loss=NextToken(z_loss=1e-4, chunk=256),
    )


@pytest.fixture(scope="session")
def shallow():
    """Makes of a run one of the same shapes with a few layers, of both kinds by turns."""

    def make(config, layers: int = 7):
        model = replace(config.model, layers=layers, pattern=("local", "local", "global"))
        return replace(config, model=model)

    return make
