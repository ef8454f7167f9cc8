"""Gemma 3 27B on 6,144 v5p (arXiv 2503.19786, table 2)."""

from launch.job import OPEN, Launch
from launch.providers import TpuVm

launch = Launch(
    name="gemma3-27b",
    config="configs/gemma3_27b.py",
    provider=TpuVm(capacity="reserved"),
    project=OPEN,  # --project
    zone="us-east5-a",
    folder=OPEN,  # --folder gs://BUCKET/gemma3_27b
)
