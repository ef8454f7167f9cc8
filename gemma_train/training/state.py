"""What a step changes: parameters, the optimizer's moments, the guard, and the number of steps."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gemma_train import storage
from gemma_train.config import RunConfig
from gemma_train.conversion import run_folder
from gemma_train.conversion.load import load
from gemma_train.conversion.run_folder import MOMENTS
from gemma_train.conversion.tensors import Weights
from gemma_train.errors import asked_by
from gemma_train.guard import Guard
from gemma_train.model import Gemma
from gemma_train.optimizer import make_optimizer, rewound
from gemma_train.placement import abstract


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """A pytree; `moments` is optax's state and is split over the mesh as the parameters are."""

    step: jax.Array  # int32: steps of the run, those that were skipped among them
    model: Gemma
    moments: optax.OptState
    guard: Guard


def initial_state(config: RunConfig) -> TrainState:
    """The state before the first step, each leaf made where it lives on the mesh in force."""
    return _begun(config, Gemma(config.model, config.compute, nnx.Rngs(config.seed)))


def imported_state(config: RunConfig, weights: Weights) -> TrainState:
    """The same with the parameters of a folder that was opened for this model, and its moments.

    Those are kept where the config says so: then the schedule alone begins anew.
    """
    model = load(replace(weights, config=config.model), config.compute)
    if config.initial_moments == "fresh" or weights.step is None:
        return _begun(config, model)
    like = abstract_state(config).moments
    kept = run_folder.restore(storage.path(weights.source), weights.step, like, MOMENTS)
    moments = jax.jit(rewound, donate_argnums=0)(kept)
    step, guard = jax.jit(_no_steps)()
    return TrainState(step=step, model=model, moments=moments, guard=guard)


def check_moments(config: RunConfig, weights: Weights | None) -> None:
    """Raise `UserError` where the config keeps moments that the weights did not come with."""
    if config.initial_moments == "kept" and weights is not None:
        with asked_by("initial_weights"):
            run_folder.check_moments(weights, abstract_state(config).moments)


def _begun(config: RunConfig, model: Gemma) -> TrainState:
    @jax.jit
    def others(model: Gemma) -> tuple[optax.OptState, tuple[jax.Array, Guard]]:
        moments = make_optimizer(config.optimizer, config.steps).init(model)
        return moments, _no_steps()

    moments, (step, guard) = others(model)
    return TrainState(step=step, model=model, moments=moments, guard=guard)


def _no_steps() -> tuple[jax.Array, Guard]:
    return jnp.zeros((), jnp.int32), Guard.begun()


def abstract_state(config: RunConfig) -> TrainState:
    """Shapes, dtypes and shardings of `initial_state` on the mesh in force, without allocation."""
    return abstract(lambda: initial_state(config))
