"""How far a local layer sees: figure 4 of the Gemma 3 report; docs/long_context.md.

The report (arXiv 2503.19786, section 5.2) finds that the window can be cut a lot before
perplexity suffers, at 1:1 and at 3:1.
"""

from gemma_train.config import RunConfig, load
from gemma_train.sweeps import AtEnd, Sweep, choices, product, runs_of, seeds
from gemma_train.sweeps.scales import ATTENTION_POD, attention_laptop, for_steps


def compared(name: str, base: RunConfig, windows: tuple[int, ...]) -> Sweep:
    ratios = choices(
        "model.pattern",
        ("local", "global"),
        ("local",) * 3 + ("global",),
        label="ratio",
        names=("1:1", "3:1"),
    )
    return Sweep(
        folder=f"runs/ablations/window_{name}",
        runs=runs_of(base, product(ratios, choices("model.window", *windows), seeds(2))),
        plots=(AtEnd(x="window"),),
    )


laptop = for_steps(attention_laptop(load("configs/quickstart_text.py")), 150)
sweep = compared("laptop", laptop, (16, 64, 256))
pod = compared("pod", ATTENTION_POD, (256, 512, 1024, 2048))
