"""The quickstart's model as a teacher, and a student of half its width that learns from it.

`make train` makes the teacher, `gemma-train teacher configs/distilled_quickstart.py` stores what it
says of the student's rows, `gemma-train train configs/distilled_quickstart.py` trains the student.
"""

from dataclasses import replace

from gemma_train.config import Stored, TopK, load
from gemma_train.stages.distil import distilled

quickstart = load("configs/quickstart_text.py")
student = replace(quickstart.model, width=96, query_heads=2, head_dimension=32, hidden=384)

config = distilled(
    replace(quickstart, model=student),
    teacher=Stored(folder="data/teachers/quickstart", weights="runs/quickstart", dtype="float32"),
    sampler=TopK(candidates=64),
)
