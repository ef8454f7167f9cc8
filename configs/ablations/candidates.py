"""(d) How many of the teacher's tokens are kept, from 4 to 256: docs/ablations.md.

The laptop's teachers come from configs/ablations/teachers.py.
"""

from gemma_train.config import load
from gemma_train.samplers import Priority, TopK
from gemma_train.stages.distil import distilled
from gemma_train.sweeps import AtEnd, Sweep, chain, choices, product, runs_of, seeds, variant
from gemma_train.sweeps.scales import POD, Scale, for_steps, laptop

SIZES = (4, 16, 64, 256)


def compared(scale: Scale, steps: int) -> Sweep:
    kept = chain(
        *(
            variant(
                "sampler",
                name,
                lambda run, kind=kind: distilled(run, scale.large_teacher, sampler=kind()),
            )
            for name, kind in (("topk", TopK), ("priority", Priority))
        )
    )
    sizes = choices("loss.sampler.candidates", *SIZES)
    return Sweep(
        folder=scale.folder("candidates"),
        runs=runs_of(for_steps(scale.student, steps), product(kept, sizes, seeds(2))),
        plots=(AtEnd(x="candidates"),),
    )


sweep = compared(laptop(load("configs/quickstart_text.py")), 150)
pod = compared(POD, 4000)
