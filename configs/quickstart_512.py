"""The quickstart's text in rows of 512 tokens: configs/long_quickstart.py takes it up again."""

from dataclasses import replace

from gemma_train.config import load

quickstart = load("configs/quickstart_text.py")

config = replace(
    quickstart,
    folder="runs/quickstart_512",
    data=replace(quickstart.data, sequence_length=512, batch_rows=2),
    evaluation=replace(quickstart.evaluation, rows=128),
)
