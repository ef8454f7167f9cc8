"""How many local layers for a global one: figure 3 of the Gemma 3 report; docs/long_context.md.

The report (arXiv 2503.19786, section 5.2) finds next to no difference in perplexity up to 7:1.
"""

from gemma_train.config import RunConfig, load
from gemma_train.sweeps import AtEnd, Sweep, chain, choices, product, runs_of, seeds
from gemma_train.sweeps.scales import ATTENTION_POD, attention_laptop

LOCAL = (1, 3, 5, 7)


def compared(name: str, base: RunConfig) -> Sweep:
    ratios = chain(
        choices("model.pattern", ("global",), label="ratio", names=("all global",)),
        choices(
            "model.pattern",
            *(("local",) * local + ("global",) for local in LOCAL),
            label="ratio",
            names=tuple(f"{local}:1" for local in LOCAL),
        ),
    )
    return Sweep(
        folder=f"runs/ablations/local_to_global_{name}",
        runs=runs_of(base, product(ratios, seeds(2))),
        baseline="ratio=all global",
        plots=(AtEnd(x="ratio"),),
    )


sweep = compared("laptop", attention_laptop(load("configs/quickstart_text.py")))
pod = compared("pod", ATTENTION_POD)
