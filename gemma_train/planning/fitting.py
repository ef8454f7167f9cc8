"""What to change in a config whose step does not fit: the cheapest changes that would do.

Each change is weighed by the model of memory.py, scaled up to what the compiler said of the config
as it is, and never down: of a step that it refuses it says only what it needs at least. Fewer extra
FLOPs come first; among equals, what disturbs training least.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gemma_train.config import RunConfig, changed
from gemma_train.errors import UserError
from gemma_train.model.flops import training_flops_per_token
from gemma_train.planning.estimate import recomputed_flops
from gemma_train.planning.memory import activation_bytes, state_bytes

SHOWN = 2
SMALLEST_CHUNK = 128

Fields = dict[str, object]  # dotted names of fields, and their values


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a config after which its step would fit; an estimate."""

    flags: str  # as a command line takes them
    peak_bytes: int
    extra_flops: float  # as a share of the model's own
    remark: str  # what else it does


def changes_that_fit(config: RunConfig, peak_bytes: int, usable_bytes: int) -> list[Change]:
    """At most two changes after which `config`, now at least at `peak_bytes`, would fit.

    Of several strengths of one kind (accumulation 2, 4, 8 ...) the weakest that does is taken.
    Where no kind is enough alone, two together are tried; empty where they are not enough either.
    """
    scale = max(1.0, (peak_bytes - state_bytes(config).total) / activation_bytes(config).peak)

    def first_that_fits(steps: list[Fields], remark: str) -> Change | None:
        for step in steps:
            other = changed(config, step)
            peak = int(state_bytes(other).total + scale * activation_bytes(other).peak)
            if peak <= usable_bytes:
                return Change(
                    flags=as_flags(step),
                    peak_bytes=peak,
                    extra_flops=_extra_flops(config, other),
                    remark=remark,
                )
        return None

    ways = list(_ways(config))
    found = [change for remark, steps in ways if (change := first_that_fits(steps, remark))]
    if not found:
        pairs = (
            ([strongest | step for step in steps], f"{remark}; {more}")
            for number, (remark, [*_, strongest]) in enumerate(ways)
            for more, steps in _ways(changed(config, strongest), skip=number + 1)
        )
        found = [change for steps, remark in pairs if (change := first_that_fits(steps, remark))]
    return sorted(found, key=lambda change: change.extra_flops)[:SHOWN]


def _ways(config: RunConfig, skip: int = 0) -> Iterator[tuple[str, list[Fields]]]:
    """(what else it does, changes from weak to strong) of each kind that the config allows."""
    mesh, batch = config.mesh, config.data.batch_rows
    powers = [2**power for power in range(1, 12)]
    ways: list[tuple[str, list[Fields]]] = [
        (
            "the loss in smaller products",
            [
                {"loss.chunk": config.loss.chunk // power}
                for power in powers
                if config.loss.chunk // power >= SMALLEST_CHUNK
            ],
        ),
        (
            "weights are gathered in every microbatch",
            [{"accumulation": config.accumulation * power} for power in powers],
        ),
        (
            "sequences split over more chips; the same chips",
            [
                {"mesh.replica": mesh.replica // power, "mesh.seq": mesh.seq * power}
                for power in powers
                if mesh.replica % power == 0
            ],
        ),
        (
            "parameters split over more chips; the same chips",
            [
                {"mesh.replica": mesh.replica // power, "mesh.data": mesh.data * power}
                for power in powers
                if mesh.replica % power == 0
            ],
        ),
        ("layers run forward a second time", [{"compute.remat": "full"}]),
        (
            "another batch, which changes what is learned",
            [{"data.batch_rows": batch // power} for power in powers if batch % power == 0],
        ),
    ]
    for remark, steps in ways[skip:]:
        if allowed := [step for step in steps if _is_allowed(config, step)]:
            yield remark, allowed


def _is_allowed(config: RunConfig, step: Fields) -> bool:
    try:
        return changed(config, step) != config
    except UserError:
        return False


def as_flags(step: Fields) -> str:
    """The fields as flags: --data.batch-rows 64."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in step.items())


def _extra_flops(config: RunConfig, other: RunConfig) -> float:
    """Recomputed FLOPs that the change adds, over the model's own."""
    own = training_flops_per_token(config.model, config.data.sequence_length)
    return (recomputed_flops(other) - recomputed_flops(config)) / own
