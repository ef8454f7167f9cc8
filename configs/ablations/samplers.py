"""(b) Which of the teacher's tokens are kept, at equal stored bytes: docs/ablations.md.

The candidates of each are those that take the same bytes a token in a store, by
benchmarks/sampler_error.py. The laptop's teachers come from configs/ablations/teachers.py.
"""

from gemma_train.config import load
from gemma_train.samplers import Counts, Gumbel, Multinomial, Priority, TopK
from gemma_train.stages.distil import distilled
from gemma_train.sweeps import AtEnd, Sweep, chain, product, runs_of, seeds, variant
from gemma_train.sweeps.scales import POD, Scale, for_steps, laptop

Kept = TopK | Gumbel | Multinomial | Counts | Priority
# 32 B a token, to half a byte, of the laptop's large teacher, vocabulary 4,096, held-out rows.
LAPTOP_KEPT = (
    TopK(candidates=17),
    Gumbel(candidates=14),
    Multinomial(candidates=19),
    Counts(candidates=41),
    Priority(candidates=19),
)
# 80 B a token at 262,144: the codec's figures where p ~ rank^-1.3, ids at random.
POD_KEPT = (
    TopK(candidates=32),
    Gumbel(candidates=28),
    Multinomial(candidates=38),
    Counts(candidates=63),
    Priority(candidates=35),
)


def compared(scale: Scale, steps: int, kept: tuple[Kept, ...]) -> Sweep:
    samplers = chain(
        *(
            variant(
                "sampler",
                f"{type(sampler).__name__.lower()} {sampler.candidates}",
                lambda run, sampler=sampler: distilled(run, scale.large_teacher, sampler=sampler),
            )
            for sampler in kept
        )
    )
    return Sweep(
        folder=scale.folder("samplers"),
        runs=runs_of(for_steps(scale.student, steps), product(samplers, seeds(2))),
        baseline=f"sampler=topk {kept[0].candidates}",
        plots=(AtEnd(x="sampler"),),
    )


sweep = compared(laptop(load("configs/quickstart_text.py")), 100, LAPTOP_KEPT)
pod = compared(POD, 4000, POD_KEPT)
