"""The 27B run on a managed instance group."""

from launch.job import OPEN, Launch
from launch.providers import ManagedInstanceGroup

launch = Launch(
    name="gemma3-27b",
    config="configs/gemma3_27b.py",
    provider=ManagedInstanceGroup(capacity="spot", secrets=("WANDB_API_KEY",)),
    project=OPEN,
    zone="us-east5-a",
    folder=OPEN,
)
