"""The TPU generations that a plan knows: memory, networks, power, and the shapes of their slices.

Peak FLOP/s stand in metrics/peak.py. The usual source is Google's page of each generation,
docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; other sources are named beside the figure.
"""

from dataclasses import dataclass

GIB = 2**30

# Slices of less than one cube of 4x4x4 (docs.cloud.google.com/tpu/docs/v4 and /v5p).
_SMALL_TORI = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# All slices of the two-dimensional generations (docs.cloud.google.com/tpu/docs/v5e).
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

# Google measured a v4 chip at 170 W on average (docs.cloud.google.com/tpu/docs/v4) and publishes
# no figure for its successors. Assumed: v5e and v5p spend as much per peak FLOP/s as v4; v6e is
# 67 % more efficient than v5e (cloud.google.com/blog, "Announcing Trillium", May 2024).
_V4_WATTS = 170.0
_ASSUMED = "assumed: v4's measured mean by peak FLOP/s"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation. Bandwidths are bytes a second, one way; memory is in bytes."""

    generation: str  # as in the name of a topology
    device_kind: str  # as JAX names it: the key of metrics/peak.py
    hbm_bytes: int  # on the data sheet
    usable_hbm_bytes: int  # what the compiler lets a program have, as its refusals say
    hbm_bandwidth: float
    link_bandwidth: float  # of one inter-chip link; a torus has two to a dimension
    network_bandwidth: float  # of a chip's share of the data-center network
    host_bytes: float  # a chip's share of its host's memory
    host_bandwidth: float  # between chip and host
    cores: int  # TensorCores; two of v4 and v5p are one device ("megacore")
    watts: float  # on average, under load
    watts_source: str
    pod_chips: int  # chips that inter-chip links can join
    slice_chips: int  # the largest slice that is let
    dimensions: int  # of the torus
    shapes: tuple[tuple[int, ...], ...]  # slices; 3-D ones of 64 and more are multiples of 4x4x4


# Links and data-center network, one way, as jax-ml.github.io/scaling-book (part 2) gives them: a
# tenth below Google's peaks (400, 1200 and 800 GB/s both ways, over 4, 6 and 4 links). The same
# part gives PCIe.
CHIPS = {
    "v4": Chip(
        generation="v4",
        device_kind="TPU v4",
        hbm_bytes=32 * GIB,
        usable_hbm_bytes=int(30.75 * GIB),  # libtpu 0.0.52, CompileTimeHbmOom
        hbm_bandwidth=1200e9,
        link_bandwidth=45e9,
        network_bandwidth=6.25e9,
        host_bytes=407e9 / 4,  # machine type ct4p-hightpu-4t of GKE
        host_bandwidth=16e9,
        cores=2,
        watts=_V4_WATTS,
        watts_source="measured mean",
        pod_chips=4096,
        slice_chips=4096,
        dimensions=3,
        shapes=_SMALL_TORI,
    ),
    "v5e": Chip(
        generation="v5e",
        device_kind="TPU v5 lite",
        hbm_bytes=16 * GIB,
        usable_hbm_bytes=int(15.75 * GIB),  # libtpu 0.0.52
        hbm_bandwidth=819e9,
        link_bandwidth=45e9,
        network_bandwidth=3.125e9,
        host_bytes=512 * GIB / 8,
        host_bandwidth=16e9,
        cores=1,
        watts=_V4_WATTS * 197 / 275,
        watts_source=_ASSUMED,
        pod_chips=256,
        slice_chips=256,
        dimensions=2,
        shapes=_FLAT,
    ),
    "v5p": Chip(
        generation="v5p",
        device_kind="TPU v5",
        hbm_bytes=96 * GIB,
        usable_hbm_bytes=int(95.73 * GIB),  # libtpu 0.0.52
        hbm_bandwidth=2765e9,
        link_bandwidth=90e9,
        network_bandwidth=6.25e9,
        host_bytes=448e9 / 4,
        host_bandwidth=16e9,
        cores=2,
        watts=_V4_WATTS * 459 / 275,
        watts_source=_ASSUMED,
        pod_chips=8960,
        slice_chips=6144,
        dimensions=3,
        shapes=_SMALL_TORI,
    ),
    "v6e": Chip(
        generation="v6e",
        device_kind="TPU v6 lite",
        hbm_bytes=32 * GIB,
        usable_hbm_bytes=int(31.24 * GIB),  # libtpu 0.0.52
        hbm_bandwidth=1638e9,
        link_bandwidth=90e9,
        network_bandwidth=12.5e9,
        host_bytes=1536 * GIB / 8,
        host_bandwidth=32e9,
        cores=1,
        watts=_V4_WATTS * 918 / 275 / 1.67,
        watts_source=_ASSUMED + ", 67 % more efficient",
        pod_chips=256,
        slice_chips=256,
        dimensions=2,
        shapes=_FLAT,
    ),
}
