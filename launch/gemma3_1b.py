"""Gemma 3 1B on 512 v5e (arXiv 2503.19786, table 2)."""

from launch.job import OPEN, Launch
from launch.providers import TpuVm

launch = Launch(
    name="gemma3-1b",
    config="configs/gemma3_1b.py",
    provider=TpuVm(capacity="reserved"),
    project=OPEN,  # --project
    zone="us-west4-b",
    folder=OPEN,  # --folder gs://BUCKET/gemma3_1b
)
