"""(c) A small teacher or a large one, over the training horizon: docs/ablations.md.

Gemma 3's report (arXiv 2503.19786, figure 8) finds the small one better for short runs and the
large one for long runs. The laptop's teachers come from configs/ablations/teachers.py.
"""

from gemma_train.config import load
from gemma_train.stages.distil import distilled
from gemma_train.sweeps import AtEnd, Sweep, chain, product, runs_of, seeds, variant
from gemma_train.sweeps.scales import POD, Scale, for_steps, laptop


def compared(scale: Scale, horizons: tuple[int, ...]) -> Sweep:
    teachers = chain(
        variant("teacher", "small", lambda run: distilled(run, scale.small_teacher)),
        variant("teacher", "large", lambda run: distilled(run, scale.large_teacher)),
    )
    steps = chain(
        *(variant("steps", one, lambda run, one=one: for_steps(run, one)) for one in horizons)
    )
    return Sweep(
        folder=scale.folder("teacher_size"),
        runs=runs_of(scale.student, product(teachers, steps, seeds(2))),
        plots=(AtEnd(x="steps"),),
    )


sweep = compared(laptop(load("configs/quickstart_text.py")), (40, 80, 160))
pod = compared(POD, (1000, 4000, 16_000, 64_000))
