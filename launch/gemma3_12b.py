"""Gemma 3 12B on 6,144 v4 (arXiv 2503.19786, table 2)."""

from launch.job import OPEN, Launch
from launch.providers import TpuVm

launch = Launch(
    name="gemma3-12b",
    config="configs/gemma3_12b.py",
    provider=TpuVm(capacity="reserved"),
    project=OPEN,  # --project
    zone="us-central2-b",
    folder=OPEN,  # --folder gs://BUCKET/gemma3_12b
)
