"""The remat policy of least recomputation that fits a chip: found by compiling, not by trust.

Every set of products to keep is known by its recomputed FLOPs and its bytes. They are tried from
the fewest FLOPs on; what the compiler says of one corrects what is expected of the next.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gemma_train.config import RunConfig
from gemma_train.model.config import SAVABLE, ComputeConfig
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.estimate import recomputed_flops
from gemma_train.planning.memory import kept_bytes
from gemma_train.planning.slices import Slices

HBM_SHARE = 0.9  # of a chip's memory that a step may fill
HOST_SHARE = 0.5  # of a chip's share of its host's memory, for offloaded products

Compile = Callable[[RunConfig], Compiled | TooLarge]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The policy, the config with it, and what the compiler made of that."""

    config: RunConfig
    compiled: Compiled
    tried: int  # configs that were compiled


def find_lean_remat(
    config: RunConfig, slices: Slices, compile_step: Compile, *, offload: bool
) -> Found | None:
    """The policy that repeats the fewest FLOPs within HBM_SHARE of the chip; None if none fits.

    With `offload` products may go to the host; among equals the least goes there. Each compilation
    takes minutes.
    """
    limit = HBM_SHARE * slices.chip.hbm_bytes
    base = replace(config, compute=replace(config.compute, remat="full"))
    plain, tried = compile_step(base), 1
    if isinstance(plain, TooLarge):
        return None
    overhead = 1.0  # bytes that a kept byte takes, as the compiler has said so far
    room = limit - plain.peak_bytes
    for candidate in _from_the_least_recomputed(base, slices, offload=offload):
        kept = kept_bytes(candidate, candidate.compute.saved)
        if kept * overhead > room:
            continue
        if not candidate.compute.kept:
            break
        found, tried = compile_step(candidate), tried + 1
        if isinstance(found, Compiled) and found.peak_bytes <= limit:
            return Found(config=candidate, compiled=found, tried=tried)
        needed = found.peak_bytes if isinstance(found, Compiled) else found.needed_bytes
        overhead = max(overhead, (needed - plain.peak_bytes) / max(kept, 1))
    fits = plain.peak_bytes <= limit
    return Found(config=base, compiled=plain, tried=tried) if fits else None


def _from_the_least_recomputed(
    config: RunConfig, slices: Slices, *, offload: bool
) -> Iterator[RunConfig]:
    """The config with each policy that the host can hold, fewest FLOPs first, then fewest bytes."""

    def rank(candidate: RunConfig) -> tuple[float, int, int]:
        compute = candidate.compute
        host, device = (
            kept_bytes(candidate, names) for names in (compute.offloaded, compute.saved)
        )
        return recomputed_flops(candidate), host, device

    found = [replace(config, compute=compute) for compute in _policies(config.compute, offload)]
    host_bytes = HOST_SHARE * slices.chip.host_bytes
    allowed = [one for one in found if kept_bytes(one, one.compute.offloaded) <= host_bytes]
    return iter(sorted(allowed, key=rank))


def _policies(compute: ComputeConfig, offload: bool) -> Iterator[ComputeConfig]:
    """Each product kept on the device, on the host where that is allowed, or not at all."""
    places = ("device", "host", "nowhere") if offload else ("device", "nowhere")
    for chosen in itertools.product(places, repeat=len(SAVABLE)):
        saved, offloaded = (
            tuple(name for name, place in zip(SAVABLE, chosen, strict=True) if place == wanted)
            for wanted in ("device", "host")
        )
        yield replace(compute, remat="save_named", saved=saved, offloaded=offloaded)
