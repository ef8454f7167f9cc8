"""The 4B run on GKE."""

from launch.job import OPEN, Launch
from launch.providers import Gke

launch = Launch(
    name="gemma3-4b",
    config="configs/gemma3_4b.py",
    provider=Gke(cluster="tpus", image="registry.example/gemma-train:1a2b3c4", secret="wandb"),
    project=OPEN,
    zone="us-west4-b",
    folder=OPEN,
    flags=("--optimizer.peak-lr", "3e-4"),
)
