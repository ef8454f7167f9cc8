"""One step: the loss and its gradient over microbatches, then AdamW, unless the guard objects."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from gemma_train.axes import activation
from gemma_train.config import RunConfig
from gemma_train.data.example import LETTERS, Batch
from gemma_train.guard import chosen, judged
from gemma_train.losses import training_loss
from gemma_train.mesh import device_kind
from gemma_train.model import Gemma
from gemma_train.model.gemma import shared
from gemma_train.optimizer import learning_rate, make_optimizer
from gemma_train.training.compiler_options import compiler_options
from gemma_train.training.state import TrainState
from gemma_train.zero3 import no_gradient, summed

Scalars = dict[str, jax.Array]


def make_step(config: RunConfig) -> Callable[..., tuple[TrainState, Scalars]]:
    """The compiled step: (state, batch) -> (next state, scalars). The state is donated.

    Made for the mesh in force, whose devices its compiler options are for. With an online teacher,
    that is its third argument.

    Scalars: `loss` (with z-loss) and `cross_entropy` in nats per token, `gradient_norm` before
    clipping, `learning_rate`, `tokens` that carried loss, and `skipped`: how many steps in a row,
    up to this one, were bad and have changed neither parameters nor moments.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    rate = learning_rate(config.optimizer, config.steps)

    def step(
        state: TrainState, batch: Batch, teacher: Gemma | None = None
    ) -> tuple[TrainState, Scalars]:
        loss = partial(training_loss, config=config.loss, teacher=teacher)
        tokens = jnp.sum(batch.weights_bt)
        sums, gradients = _accumulate(
            jax.value_and_grad(loss, has_aux=True),
            shared(state.model),
            batch,
            1.0 / jnp.maximum(tokens, 1.0),
            config.accumulation,
        )
        gradients = summed(gradients, state.model)
        updates, moments = optimizer.update(gradients, state.moments, state.model)
        norm = optax.tree.norm(gradients)
        good, guard = judged(state.guard, config.guard, sums[0], norm)
        scalars = {
            "loss": sums[0],
            "cross_entropy": sums[1],
            "gradient_norm": norm,
            "learning_rate": rate(state.step - state.guard.skipped),
            "tokens": tokens,
            "skipped": guard.in_a_row,
        }
        new = optax.apply_updates(state.model, updates), moments
        model, moments = chosen(good, new, (state.model, state.moments))
        return TrainState(step=state.step + 1, model=model, moments=moments, guard=guard), scalars

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options(device_kind()))


def _accumulate(
    value_and_gradient: Callable,
    model: Gemma,
    batch: Batch,
    token_weight: jax.Array,
    microbatches: int,
) -> tuple[tuple[jax.Array, jax.Array], Gemma]:
    """The sums of loss and gradient over microbatches, one at a time in memory.

    Gradients of shared weights are still to be summed over replicas: once, not every microbatch.
    """
    if microbatches == 1:
        return value_and_gradient(model, batch, token_weight)

    def part(x: jax.Array) -> jax.Array:
        """[b, ...] -> [microbatch, b / microbatches, ...], every device keeping rows of its own."""
        b, *others = activation(LETTERS[x.ndim])
        shape = (x.shape[0] // microbatches, microbatches, *x.shape[1:])
        parts = jax.lax.reshape(x, shape, out_sharding=PartitionSpec(b, None, *others))
        return jnp.swapaxes(parts, 0, 1)

    def add(sums, one: Batch):
        return jax.tree.map(jnp.add, sums, value_and_gradient(model, one, token_weight)), None

    zero = jnp.zeros((), jnp.float32)
    empty = ((zero, zero), jax.tree.map(no_gradient, model))
    return jax.lax.scan(add, empty, jax.tree.map(part, batch))[0]
