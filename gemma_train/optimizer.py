"""AdamW with a warmed-up schedule, clipping by the global norm, and no decay on norm scales."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gemma_train.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Numbers of AdamW and of its schedule."""

    peak_lr: float = 3e-4  # learning rate after the warm-up
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # how it falls afterwards
    warmup_steps: int = 100  # steps of linear rise to peak_lr
    final_lr_fraction: float = 0.1  # of peak_lr, reached at the last step
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.95  # decay of the second moment
    epsilon: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # decoupled; norm scales are exempt
    clip_norm: float = 1.0  # gradients are scaled down to this global norm

    def __post_init__(self) -> None:
        for name, low, high in (
            ("peak_lr", 0.0, math.inf),
            ("epsilon", 0.0, math.inf),
            ("clip_norm", 0.0, math.inf),
        ):
            value = getattr(self, name)
            require(
                low < value < high,
                f"optimizer.{name} is {value}: it must be a finite number above {low:g}",
            )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(
                0.0 <= value < 1.0,
                f"optimizer.{name} is {value}: it must be at least 0 and below 1",
            )
        for name, low, high in (
            ("final_lr_fraction", 0.0, 1.0),
            ("weight_decay", 0.0, 1e6),
            ("warmup_steps", 0, 10**12),
        ):
            value = getattr(self, name)
            require(
                low <= value <= high,
                f"optimizer.{name} is {value}: it must lie between {low:g} and {high:g}",
            )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step, for a run of `steps` steps."""
    warmup = min(config.warmup_steps, steps)
    falling, final = max(steps - warmup - 1, 1), config.peak_lr * config.final_lr_fraction
    match config.schedule:
        case "cosine":
            after = optax.cosine_decay_schedule(config.peak_lr, falling, config.final_lr_fraction)
        case "linear":
            after = optax.linear_schedule(config.peak_lr, final, falling)
        case "constant":
            after = optax.constant_schedule(config.peak_lr)
    rise = optax.linear_schedule(config.peak_lr / (warmup + 1), config.peak_lr, max(warmup, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW over a tree of parameters, for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def rewound(moments: optax.OptState) -> optax.OptState:
    """The optimizer's state with its schedule at the first step again, and Adam's moments kept.

    Adam's own count is kept with them: it says how far the averages have come from the zeros that
    they began with. At 0, with betas of 0.9 and 0.95, the first update would be 2.2 times too long.
    """

    def schedule(part: Any) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    def begun(part: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, part) if schedule(part) else part

    return jax.tree.map(begun, moments, is_leaf=schedule)


def decays(parameters: Any) -> Any:
    """The same tree with True where weight decay applies: everywhere but on norm scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any("norm" in str(key) for key in path), parameters
    )
