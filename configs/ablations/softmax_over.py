"""(e) The student's softmax over the whole vocabulary, or over the candidates: docs/ablations.md.

The first is Gemma's loss. Renormalised over the candidates, as some peers do, no other token is
ever pushed down. The laptop's teachers come from configs/ablations/teachers.py.
"""

from gemma_train.config import load
from gemma_train.stages.distil import distilled
from gemma_train.sweeps import AtEnd, Sweep, choices, product, runs_of, seeds
from gemma_train.sweeps.scales import POD, Scale, for_steps, laptop


def compared(scale: Scale, steps: int) -> Sweep:
    student = distilled(for_steps(scale.student, steps), scale.large_teacher)
    softmax = choices("loss.student", "full", "candidates", label="softmax")
    sizes = choices("loss.sampler.candidates", 16, 256)
    return Sweep(
        folder=scale.folder("softmax_over"),
        runs=runs_of(student, product(softmax, sizes, seeds(2))),
        plots=(AtEnd(x="candidates"),),
    )


sweep = compared(laptop(load("configs/quickstart_text.py")), 150)
pod = compared(POD, 4000)
