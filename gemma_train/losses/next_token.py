"""Cross-entropy of the next token, with an optional z-loss: training from hard labels."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.data.example import Batch
from gemma_train.errors import require
from gemma_train.kernels.vocabulary.loss import LossTerms, Targets, vocabulary_loss
from gemma_train.mesh import mesh_of
from gemma_train.model import Gemma
from gemma_train.model.image_inputs import checked_inputs, images_of
from gemma_train.model.packing import packing
from gemma_train.model.soft_tokens import Images


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Train on the token that follows, as text gives it."""

    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator
    chunk: int = 1024  # tokens per device whose logits exist at one time

    def __post_init__(self) -> None:
        require(
            0.0 <= self.z_loss < 1.0,
            f"loss.z_loss is {self.z_loss}: it must lie between 0 and 1 (1e-4 is usual)",
        )
        require(self.chunk >= 1, f"loss.chunk is {self.chunk}: it must be at least 1")


def next_token_loss(
    model: Gemma,
    batch: Batch,
    token_weight: jax.Array,
    config: NextToken,
    images: Images | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(loss with z-loss, cross-entropy): float32 sums over tokens of batch weight * token_weight.

    `token_weight` is 1 / (tokens with loss in the whole step), so that sums over microbatches are
    the step's means in nats per token.
    """
    inputs = batch.tokens_bt, batch.positions_bt, batch.segments_bt
    states_btd, _ = model(*inputs, images=images)
    terms = LossTerms(
        z_loss=config.z_loss, soft_cap=model.config.final_soft_cap, chunk=config.chunk
    )
    return vocabulary_loss(
        states_btd,
        model.embedding.table[...],
        Targets(hard_bt=batch.targets_bt),
        batch.weights_bt * token_weight,
        terms,
    )


def mean_next_token_loss(
    model: Gemma,
    tokens_bt: jax.typing.ArrayLike,
    positions_bt: jax.typing.ArrayLike | None = None,
    segment_ids_bt: jax.typing.ArrayLike | None = None,
    *,
    image_embeddings: jax.typing.ArrayLike | None = None,
    image_index_bt: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Mean cross-entropy, in nats, of each token that follows another of its segment.

    Integers of shape [b, t] and images as in `Gemma.logits`; soft tokens are no targets.
    Differentiable in the model, a pytree.
    """
    inputs, images = checked_inputs(
        model.config,
        tokens_bt,
        positions_bt,
        segment_ids_bt,
        image_embeddings=image_embeddings,
        image_index_bt=image_index_bt,
    )
    with mesh_of(model):
        return _mean_loss(model, *inputs, images)


def mean_next_token_loss_and_gradient(
    model: Gemma,
    tokens_bt: jax.typing.ArrayLike,
    positions_bt: jax.typing.ArrayLike | None = None,
    segment_ids_bt: jax.typing.ArrayLike | None = None,
    *,
    image_embeddings: jax.typing.ArrayLike | None = None,
    image_index_bt: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, Gemma]:
    """`mean_next_token_loss` and its gradient, which is a Gemma: `gradient.parameters()`."""
    inputs, images = checked_inputs(
        model.config,
        tokens_bt,
        positions_bt,
        segment_ids_bt,
        image_embeddings=image_embeddings,
        image_index_bt=image_index_bt,
    )
    with mesh_of(model):
        return _mean_loss_and_gradient(model, *inputs, images)


@jax.jit
def _mean_loss(model: Gemma, tokens_bt, positions_bt, segments_bt, embedded=None) -> jax.Array:
    tokens_bt, positions_bt, segments_bt = packing(tokens_bt, positions_bt, segments_bt)

    def following(x_bt: jax.Array) -> jax.Array:
        return jnp.roll(x_bt, -1, axis=1).at[:, -1].set(0)

    counts_bt = (segments_bt == following(segments_bt)) & (segments_bt > 0)
    if embedded is not None:
        counts_bt &= following(embedded[1]) < 0
    batch = Batch(
        tokens_bt=tokens_bt,
        targets_bt=following(tokens_bt),
        positions_bt=positions_bt,
        segments_bt=segments_bt,
        weights_bt=counts_bt.astype(jnp.float32),
    )
    batch = jax.tree.map(lambda x_bt: reshard(x_bt, activation("bt")), batch)
    tokens = jnp.maximum(jnp.sum(batch.weights_bt), 1.0)
    images = images_of(*embedded) if embedded is not None else None
    return next_token_loss(model, batch, 1.0 / tokens, NextToken(), images)[0]


_mean_loss_and_gradient = jax.jit(jax.value_and_grad(_mean_loss))
