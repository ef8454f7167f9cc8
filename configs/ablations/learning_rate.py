"""Three learning rates, two seeds each, for a few steps of the quickstart: docs/sweeps.md.

`gemma-train prepare data_recipes/quickstart.py` makes the data.
"""

from dataclasses import replace

from gemma_train.config import EvaluationConfig, load
from gemma_train.sweeps import AtEnd, OverTokens, Sweep, choices, product, runs_of, seeds

base = replace(
    load("configs/quickstart_text.py"),
    steps=60,
    evaluation=EvaluationConfig(every_steps=10, rows=64),
    checkpoint_every_steps=30,
    checkpoints_kept=1,
)
rates = choices("optimizer.peak_lr", 1e-3, 4e-3, 1.6e-2, label="rate")

sweep = Sweep(
    folder="runs/sweeps/learning_rate",
    runs=runs_of(base, product(rates, seeds(2))),
    baseline="rate=0.004",
    plots=(AtEnd(x="rate", against_baseline=True), OverTokens(after_tokens=10_000)),
)
