"""What the design of a step sends, held to the step as it is traced."""

import math
from dataclasses import replace

import pytest

from gemma_train.config import (
    Counts,
    Distillation,
    NextToken,
    Online,
    Priority,
    Stored,
    TopK,
)
from gemma_train.planning.traffic import vocabulary_sums

SOFT = Distillation(teacher=Stored(folder="none", weights="none"), sampler=TopK(candidates=8))
LOSSES = {
    "text": NextToken(),
    "candidates": SOFT,
    "another temperature": replace(SOFT, temperature=2.0),
    "two losses": replace(SOFT, temperature=2.0, hard_label_weight=0.5),
    "a teacher in the step": replace(SOFT, sampler=Priority(candidates=8)),
    "its draws": replace(SOFT, sampler=Counts(candidates=8)),
    "a whole teacher": replace(SOFT, sampler=Priority(candidates=8)),
}


def sums_in(jaxpr, axes: tuple[str, ...], times: int = 1) -> int:
    """Bytes of what a program sums, or takes the largest of, over exactly these mesh axes."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("psum", "pmax") and equation.params["axes"] == axes:
            sizes = (math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in equation.outvars)
            found += times * sum(sizes)
        repeated = times * equation.params.get("length", 1)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += sums_in(inner, axes, repeated)
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [256, 100])
def test_figures_of_tokens_are_summed_over_the_vocabulary_as_the_step_does(
    name, chunk, run_on_chips, mesh_of
):
    import jax

    from gemma_train.config import MeshConfig
    from gemma_train.model.sizes import GEMMA3_1B
    from gemma_train.placement import abstract_batch
    from gemma_train.teachers.online import abstract_teacher
    from gemma_train.teachers.stored import batch_layout
    from gemma_train.training.state import abstract_state
    from gemma_train.training.step import make_step

    model = replace(
        GEMMA3_1B, vocabulary=1024, width=128, layers=1, hidden=128, context=128, window=64
    )
    loss = replace(LOSSES[name], chunk=chunk)
    if name.startswith(("a teacher", "its", "a whole")):
        sharding = "whole" if "whole" in name else "split"
        loss = replace(loss, teacher=Online(weights="none", model=model, sharding=sharding))
    run = run_on_chips(model, MeshConfig(data=8), length=128, rows=16, steps=9, loss=loss)
    config = run(accumulation=2, compute__attention="reference")
    with mesh_of(data=8):
        batch = abstract_batch(jax.sharding.get_mesh(), 16, batch_layout(config))
        step = make_step(config).trace(abstract_state(config), batch, abstract_teacher(config))
    assert sums_in(step.jaxpr.jaxpr, ("data_minor",)) == vocabulary_sums(config) > 0
