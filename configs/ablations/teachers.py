"""The two teachers of the laptop's ablations: run this first. docs/ablations.md.

`gemma-train prepare data_recipes/quickstart.py` makes the data. The pod's are published weights.
"""

from gemma_train.config import load
from gemma_train.sweeps import OverTokens, Run, Sweep
from gemma_train.sweeps.scales import TEACHERS, laptop_teachers

sweep = Sweep(
    folder=TEACHERS,
    runs=tuple(
        Run(name=f"teacher={name}", config=run, labels={"teacher": name})
        for name, run in laptop_teachers(load("configs/quickstart_text.py")).items()
    ),
    plots=(OverTokens(after_tokens=50_000),),
)
