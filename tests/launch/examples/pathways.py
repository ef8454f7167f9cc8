"""The 27B run on GKE, driven by Pathways."""

from launch.job import OPEN, Launch
from launch.providers import Gke, Pathways, Reserved

launch = Launch(
    name="gemma3-27b",
    config="configs/gemma3_27b.py",
    provider=Gke(
        cluster="tpus",
        image="registry.example/gemma-train:1a2b3c4",
        capacity=Reserved(reservation="v5p-pod"),
        pathways=Pathways(
            server_image="registry.example/pathways/server:1",
            proxy_image="registry.example/pathways/proxy:1",
        ),
    ),
    project=OPEN,
    zone="us-east5-a",
    folder=OPEN,
)
