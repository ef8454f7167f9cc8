"""(a) Distilled from a large teacher, or trained from scratch, at equal tokens: docs/ablations.md.

The laptop's teachers come from configs/ablations/teachers.py.
"""

from gemma_train.config import load
from gemma_train.stages.distil import distilled
from gemma_train.sweeps import OverTokens, Sweep, chain, product, runs_of, seeds, variant
from gemma_train.sweeps.scales import POD, Scale, laptop


def compared(scale: Scale) -> Sweep:
    losses = chain(
        variant("trained", "from scratch"),
        variant("trained", "distilled", lambda run: distilled(run, scale.large_teacher)),
    )
    return Sweep(
        folder=scale.folder("distilled_or_scratch"),
        runs=runs_of(scale.student, product(losses, seeds(3))),
        baseline="trained=from scratch",
        plots=(OverTokens(after_tokens=0.1 * scale.student.steps * scale.student.step_tokens),),
    )


sweep = compared(laptop(load("configs/quickstart_text.py")))
pod = compared(POD)
