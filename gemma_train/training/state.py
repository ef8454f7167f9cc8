"""What a step changes: the parameters, the optimizer's moments and the number of steps taken."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gemma_train.config import RunConfig
from gemma_train.model import Gemma
from gemma_train.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """A pytree; `moments` is optax's state and is split over the mesh as the parameters are."""

    step: jax.Array  # int32: optimizer steps taken
    model: Gemma
    moments: optax.OptState


def initial_state(config: RunConfig) -> TrainState:
    """The state before the first step, each leaf made where it lives on the mesh in force."""

    @jax.jit
    def make() -> TrainState:
        model = Gemma(config.model, config.compute, nnx.Rngs(config.seed))
        moments = make_optimizer(config.optimizer, config.steps).init(model)
        return TrainState(step=jnp.zeros((), jnp.int32), model=model, moments=moments)

    return make()


def abstract_state(config: RunConfig) -> TrainState:
    """Shapes, dtypes and shardings of `initial_state` on the mesh in force, without allocation."""
    mesh = jax.sharding.get_mesh()

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = leaf.sharding.spec if leaf.sharding else PartitionSpec()
        return leaf.update(sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(lambda: initial_state(config)))


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by readable path, such as 'model/pattern/0/attention/query'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def from_paths(leaves: dict[str, Any], like: Any) -> Any:
    """The tree shaped as `like` with these leaves: the inverse of `by_path`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], like)


def _name(path: tuple[Any, ...]) -> str:
    """The path in words; a flax parameter's own last word, 'value', is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
