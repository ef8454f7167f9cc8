"""What a step changes: the parameters, the optimizer's moments and the number of steps taken."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gemma_train.config import RunConfig
from gemma_train.conversion.load import load
from gemma_train.conversion.tensors import Weights
from gemma_train.model import Gemma
from gemma_train.optimizer import make_optimizer
from gemma_train.placement import abstract


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """A pytree; `moments` is optax's state and is split over the mesh as the parameters are."""

    step: jax.Array  # int32: optimizer steps taken
    model: Gemma
    moments: optax.OptState


def initial_state(config: RunConfig) -> TrainState:
    """The state before the first step, each leaf made where it lives on the mesh in force."""
    return _begun(config, Gemma(config.model, config.compute, nnx.Rngs(config.seed)))


def imported_state(config: RunConfig, weights: Weights) -> TrainState:
    """The same with the parameters of a folder that was opened for this model."""
    return _begun(config, load(replace(weights, config=config.model), config.compute))


def _begun(config: RunConfig, model: Gemma) -> TrainState:
    @jax.jit
    def others(model: Gemma) -> tuple[jax.Array, optax.OptState]:
        moments = make_optimizer(config.optimizer, config.steps).init(model)
        return jnp.zeros((), jnp.int32), moments

    step, moments = others(model)
    return TrainState(step=step, model=model, moments=moments)


def abstract_state(config: RunConfig) -> TrainState:
    """Shapes, dtypes and shardings of `initial_state` on the mesh in force, without allocation."""
    return abstract(lambda: initial_state(config))
