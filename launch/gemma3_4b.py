"""Gemma 3 4B on 2,048 v5e (arXiv 2503.19786, table 2)."""

from launch.job import OPEN, Launch
from launch.providers import TpuVm

launch = Launch(
    name="gemma3-4b",
    config="configs/gemma3_4b.py",
    provider=TpuVm(capacity="reserved"),
    project=OPEN,  # --project
    zone="us-west4-b",
    folder=OPEN,  # --folder gs://BUCKET/gemma3_4b
)
