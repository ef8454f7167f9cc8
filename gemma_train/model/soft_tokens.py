"""Soft tokens: an image's pooled embeddings, normed, projected, and put where its places are.

The encoder that made the embeddings is frozen and no part of the language model; norm and
projection are trained (Gemma 3 report, 2503.19786, 2.1). Soft tokens are not multiplied by the root
of the width, as rows of the table are.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gemma_train.axes import activation
from gemma_train.kernels.contraction import contract
from gemma_train.model.layers import rms_norm
from gemma_train.model.weight import Declaration
from gemma_train.zero3 import gather, share, whole


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a batch's rows: so many to a row, those that are not there unused."""

    embeddings_bipe: jax.Array  # pooled, of the frozen encoder
    soft_bt: jax.Array  # image * p + soft token, of those of the row; -1 where text stands

    @property
    def image_bt(self) -> jax.Array:
        """The image of each position; -1 of text."""
        return self.soft_bt // self.embeddings_bipe.shape[2]


class SoftTokens(nnx.Module):
    """RMSNorm and a projection to the model's width, without bias."""

    def __init__(self, declare: Declaration):
        self.norm = declare.scale("e")
        self.projection = declare.weight("ed", fan_in="e")

    def __call__(self, x_btd: jax.Array, images: Images) -> jax.Array:
        """The embedded tokens, with soft tokens where they stand.

        Embeddings come to their positions first, and are normed and projected there: split as the
        positions are; those of text cost a few hundredths of one layer.
        """
        b, i, p, e = images.embeddings_bipe.shape
        flat = jnp.reshape(images.embeddings_bipe, (b, i * p, e), out_sharding=activation("bpe"))
        placed_bte = _placed(flat, images.soft_bt).astype(x_btd.dtype)
        normed_bte = rms_norm(placed_bte, whole(self.norm[...]))
        projection_ed = gather(share(self.projection[...]), x_btd.dtype)
        soft_btd = contract("bte,ed->btd", normed_bte, projection_ed)
        return jnp.where((images.soft_bt >= 0)[..., None], soft_btd, x_btd)


def _placed(embeddings: jax.Array, soft_bt: jax.Array) -> jax.Array:
    """[b, t, e] of [b, i * p, e]: at each position its own; the first where text stands."""

    def on_one_shard(embeddings: jax.Array, soft_bt: jax.Array) -> jax.Array:
        return jnp.take_along_axis(embeddings, jnp.maximum(soft_bt, 0)[..., None], axis=1)

    return jax.shard_map(
        on_one_shard,
        in_specs=(activation("bpe"), activation("bt")),
        out_specs=activation("bte"),
    )(embeddings, soft_bt)
