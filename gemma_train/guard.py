"""Bad steps: whose loss or gradient is not finite, or leaps out of what the run has seen lately.

The step itself decides, and leaves parameters and moments as they were, bit for bit: no host reads
a number first. What it has seen lately is part of the state, and so of every checkpoint.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gemma_train.errors import require

_MEMORY = 0.99  # weight of the past in the running mean and variance: about 100 steps
_SEEN = 100  # good steps before a leap can be told from the noise
_LEAST_DEVIATION = 0.01  # nats, and of the norm's logarithm: a run can be too quiet to tell


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Which steps are skipped, and what becomes of a run in which they pile up."""

    spike_deviations: float = 10.0  # above the running mean is a spike; 0: only the non-finite are
    bad_steps: int = 10  # in a row: back to the last checkpoint, and past the rows since
    returns: int = 3  # such returns of a run; at the next one it ends with exit code 3

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.spike_deviations) and self.spike_deviations >= 0,
            f"guard.spike_deviations is {self.spike_deviations}: it must be 0 (off) or more",
        )
        require(self.bad_steps >= 1, f"guard.bad_steps is {self.bad_steps}: it must be at least 1")
        require(self.returns >= 0, f"guard.returns is {self.returns}: it must be 0 or more")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Guard:
    """A pytree of scalars, the same on every device."""

    seen: jax.Array  # int32: good steps
    loss_mean: jax.Array  # float32, of the good steps lately
    loss_variance: jax.Array
    norm_mean: jax.Array  # float32: of the gradient norm's natural logarithm
    norm_variance: jax.Array
    skipped: jax.Array  # int32: bad steps of the whole run
    in_a_row: jax.Array  # int32: bad steps since the last good one

    @classmethod
    def begun(cls) -> "Guard":
        """Before the first step."""
        whole, real = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return cls(
            seen=whole,
            loss_mean=real,
            loss_variance=real,
            norm_mean=real,
            norm_variance=real,
            skipped=whole,
            in_a_row=whole,
        )

    def anew(self) -> "Guard":
        """Of a run that goes on otherwise: what was seen so far is no measure of what comes."""
        return replace(Guard.begun(), skipped=self.skipped)


def judged(
    guard: Guard, config: GuardConfig, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[jax.Array, Guard]:
    """(whether a step is good: bool [], the guard after it)."""
    norm = jnp.log(jnp.maximum(gradient_norm, 1e-30))
    good = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike_deviations:
        leaps = _leaps(loss, guard.loss_mean, guard.loss_variance, config.spike_deviations)
        leaps |= _leaps(norm, guard.norm_mean, guard.norm_variance, config.spike_deviations)
        good &= ~(leaps & (guard.seen >= _SEEN))
    weight = 1.0 / jnp.minimum(guard.seen + 1, 1.0 / (1.0 - _MEMORY))  # of this step: 1, 1/2, ...
    some = gradient_norm > 0.0  # rows without a token have no loss, and tell nothing
    weight = jnp.where(some, weight, 0.0)
    loss_mean, loss_variance = _moved(guard.loss_mean, guard.loss_variance, loss, weight)
    norm_mean, norm_variance = _moved(guard.norm_mean, guard.norm_variance, norm, weight)
    moved = Guard(
        seen=guard.seen + some,
        loss_mean=loss_mean,
        loss_variance=loss_variance,
        norm_mean=norm_mean,
        norm_variance=norm_variance,
        skipped=guard.skipped,
        in_a_row=jnp.zeros_like(guard.in_a_row),
    )
    stayed = Guard(**vars(guard) | {"skipped": guard.skipped + 1, "in_a_row": guard.in_a_row + 1})
    return good, chosen(good, moved, stayed)


def chosen[Tree](good: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where a step is good, otherwise `old`, bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def _leaps(value: jax.Array, mean: jax.Array, variance: jax.Array, deviations: float) -> jax.Array:
    return value > mean + deviations * jnp.maximum(jnp.sqrt(variance), _LEAST_DEVIATION)


def _moved(
    mean: jax.Array, variance: jax.Array, value: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Running mean and variance with one more value of this weight."""
    away = value - mean
    return mean + weight * away, (1.0 - weight) * (variance + weight * away * away)
