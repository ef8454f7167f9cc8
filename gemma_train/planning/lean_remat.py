"""The remat policy of least recomputation that fits a chip: found by compiling, not by trust.

Every set of products to keep is known by its recomputed FLOPs and its bytes. They are tried from
the fewest FLOPs on; what the compiler says of one corrects what is expected of the next.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np

from gemma_train.config import RunConfig
from gemma_train.model.config import ComputeConfig
from gemma_train.model.remat import products
from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.estimate import recomputed_flops
from gemma_train.planning.memory import kept_bytes
from gemma_train.planning.slices import Slices

HBM_SHARE = 0.9  # of a chip's memory that a step may fill
HOST_SHARE = 0.5  # of a chip's share of its host's memory, for offloaded products
MOST_TRIED = 6  # compilations of one search, that of full remat among them

Compile = Callable[[RunConfig], Compiled | TooLarge]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A policy whose step the compiler could not make, and its word on that."""

    compute: ComputeConfig
    message: str  # one line


@dataclass(frozen=True, kw_only=True)
class Found:
    """The policy, the config with it, and what the compiler made of that."""

    config: RunConfig
    compiled: Compiled | TooLarge
    tried: int  # configs that were compiled
    fits: bool  # within HBM_SHARE of the chip; if not, it is full remat, which is the least
    failed: tuple[Failed, ...] = ()  # of the tried ones


class _Expected:
    """Bytes on the chip for each byte that a policy keeps there, and for each that it offloads.

    One and none, until steps were compiled: then the nearest figures that agree with them. What
    scanned neighbours keep is held a second time, on its way into the stack of all repetitions.
    """

    def __init__(self, config: RunConfig) -> None:
        model, twice = config.model, 0
        if config.compute.scan_neighbours:
            runs = [len(list(run)) for _, run in itertools.groupby(model.pattern)]
            twice = max(runs) if max(runs) > 1 else 0
        self._first = np.array([1.0 + twice / model.layers, 0.0])
        self._sizes: list[tuple[int, int]] = []
        self._errors: list[float] = []
        self._figures = self._first

    def bytes(self, config: RunConfig) -> float:
        """What the products kept by `config` take of a chip."""
        return float(self._figures @ _sizes(config))

    def learn(self, config: RunConfig, found_bytes: float) -> None:
        """Agree with what the compiler found that they take."""
        self._sizes.append(_sizes(config))
        self._errors.append(found_bytes - float(self._first @ _sizes(config)))
        nearest = np.linalg.lstsq(np.array(self._sizes, float), np.array(self._errors))[0]
        self._figures = np.maximum(self._first + nearest, 0.0)


def _sizes(config: RunConfig) -> tuple[int, int]:
    """Bytes per chip that the policy of `config` keeps: on the chip, on the host."""
    compute = config.compute
    return kept_bytes(config, compute.saved), kept_bytes(config, compute.offloaded)


def find_lean_remat(
    config: RunConfig, slices: Slices, compile_step: Compile, *, offload: bool
) -> Found:
    """The policy that repeats the fewest FLOPs within HBM_SHARE of the chip, else full remat.

    With `offload` products may go to the host; among equals the least goes there. Each compilation
    takes minutes: after MOST_TRIED the search ends with the best so far. A policy on which the
    compiler itself fails is passed over, with all that offload the same and more.
    """
    limit = HBM_SHARE * slices.chip.hbm_bytes
    base = replace(config, compute=replace(config.compute, remat="full"))
    plain = compile_step(base)
    fits = isinstance(plain, Compiled) and plain.peak_bytes <= limit
    full = Found(config=base, compiled=plain, tried=1, fits=fits)
    if isinstance(plain, TooLarge):
        return full
    expected, tried, failed, best = _Expected(config), 1, [], None
    left = list(_from_the_least_recomputed(base, slices, offload=offload))

    def is_worth_it(candidate: RunConfig) -> bool:
        room = plain.peak_bytes + expected.bytes(candidate) <= limit
        return room and bool(candidate.compute.kept) and not _is_hopeless(candidate, failed)

    while tried < MOST_TRIED and (candidate := next(filter(is_worth_it, left), None)):
        left.remove(candidate)
        found, tried = _compiled(candidate, compile_step), tried + 1
        if isinstance(found, Failed):
            failed.append(found)
            continue
        needed = found.peak_bytes if isinstance(found, Compiled) else found.needed_bytes
        expected.learn(candidate, needed - plain.peak_bytes)
        if isinstance(found, Compiled) and needed <= limit:
            best = replace(full, config=candidate, compiled=found, fits=True)
            # What was thought too large may fit, by what was learned; it has to repeat less.
            fewest = recomputed_flops(candidate)
            left = [other for other in left if recomputed_flops(other) < fewest]
    return replace(best or full, tried=tried, failed=tuple(failed))


def _compiled(config: RunConfig, compile_step: Compile) -> Compiled | TooLarge | Failed:
    """What the compiler makes of it; its own failure is a result too."""
    try:
        return compile_step(config)
    except jax.errors.JaxRuntimeError as error:
        return Failed(compute=config.compute, message=str(error).strip().partition("\n")[0])


def _is_hopeless(config: RunConfig, failed: Iterable[Failed]) -> bool:
    """Whether it offloads all that a failed policy did."""
    offloaded = set(config.compute.offloaded)
    return any(
        one.compute.offloaded and offloaded.issuperset(one.compute.offloaded) for one in failed
    )


def _from_the_least_recomputed(
    config: RunConfig, slices: Slices, *, offload: bool
) -> Iterator[RunConfig]:
    """The config with each policy that the host can hold, fewest FLOPs first, then fewest bytes."""

    def rank(candidate: RunConfig) -> tuple[float, int, int]:
        device, host = _sizes(candidate)
        return recomputed_flops(candidate), host, device

    found = [replace(config, compute=compute) for compute in _policies(config, offload)]
    host_bytes = HOST_SHARE * slices.chip.host_bytes
    allowed = [one for one in found if _sizes(one)[1] <= host_bytes]
    return iter(sorted(allowed, key=rank))


def _policies(config: RunConfig, offload: bool) -> Iterator[ComputeConfig]:
    """Each product of a layer kept or not; of a kept one each name on the device or the host.

    What one product makes is kept together, for one name that is not costs the whole product.
    """
    places = ("device", "host") if offload else ("device",)
    ways: list[list[dict[str, str]]] = [
        [{}]
        + [
            dict(zip(product.elements, chosen, strict=True))
            for chosen in itertools.product(places, repeat=len(product.elements))
        ]
        for product in products(config.model, config.data.sequence_length)
    ]
    for combined in itertools.product(*ways):
        place_of = {name: place for way in combined for name, place in way.items()}
        saved, offloaded = (
            tuple(name for name, place in place_of.items() if place == wanted)
            for wanted in ("device", "host")
        )
        yield replace(config.compute, remat="save_named", saved=saved, offloaded=offloaded)
