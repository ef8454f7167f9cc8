"""The quickstart without images: as many steps of its text as are left of it, and nothing else.

The ablations begin from it, and it tells what reading images costs in text.
"""

from dataclasses import replace

from gemma_train.config import TokenSource, load

quickstart = load("configs/quickstart.py")

config = replace(
    quickstart,
    folder="runs/quickstart_text",
    model=replace(quickstart.model, vision=None),
    data=replace(
        quickstart.data,
        train=(TokenSource(path="data/quickstart/train"),),
        held_out=("data/quickstart/held_out",),
        images=None,
    ),
    steps=512,
    evaluation=replace(quickstart.evaluation, captions=0),
)
