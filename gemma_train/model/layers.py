"""RMSNorm, rotary positions, the gated feed-forward and the embedding of Gemma.

Norms and rotations run in float32 and are cast back; matmuls run in the compute dtype.
Sources: the Gemma reports; flax code of google-deepmind/gemma for placement and scaling.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import ACTIVATIONS, activation
from gemma_train.kernels.contraction import contract, contract_each, scaled
from gemma_train.model.weight import Declaration
from gemma_train.zero3 import axes_of, gather, share

EPSILON = 1e-6


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / rms(x) * (1 + scale) over the last axis, in float32, in the dtype of x."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + EPSILON)
    return scaled(wide * inverse, 1.0 + scale.astype(jnp.float32)).astype(x.dtype)


def rotate(x: jax.Array, positions_bt: jax.Array, base: float, factor: float) -> jax.Array:
    """Rotary positions on [b, t, heads, h]: the first half of h pairs with the second.

    Angles are position / factor * base ** (-2i / h), in float32.
    """
    half = x.shape[-1] // 2
    frequency_h = base ** (-jnp.arange(half, dtype=jnp.float32) / half) / factor
    angle = positions_bt.astype(jnp.float32)[..., None, None] * frequency_h
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class FeedForward(nnx.Module):
    """down(gelu_tanh(gate(x)) * up(x)), without biases."""

    def __init__(self, declare: Declaration):
        self.gate = declare.weight("df", fan_in="d")
        self.up = declare.weight("df", fan_in="d")
        self.down = declare.weight("fd", fan_in="f")

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        weights = (self.gate[...], self.up[...])
        gate_btf, up_btf = contract_each("btd,df->btf", x_btd, weights)
        gate_btf, up_btf = checkpoint_name(gate_btf, "gate"), checkpoint_name(up_btf, "up")
        down_fd = gather(self.down[...], x_btd.dtype)
        hidden_btf = jax.nn.gelu(gate_btf, approximate=True) * up_btf
        return contract("btf,fd->btd", hidden_btf, down_fd)


class Embedding(nnx.Module):
    """The table of the input, tied to the output projection."""

    def __init__(self, declare: Declaration):
        self.table = declare.weight("vd", fan_in="d")

    def __call__(self, tokens_bt: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Rows of the table times sqrt(width), the root rounded to `dtype` as Gemma does.

        No device holds the whole table: its rows are gathered, its columns stay split. A device
        looks up its columns for the tokens of all that share them; one exchange then brings the
        columns of each token together.
        """
        shared_vd = share(self.table[...])
        columns = axes_of(shared_vd)[1]
        spec_bt = PartitionSpec(*(_without(ACTIVATIONS[letter], columns) for letter in "bt"))
        spec_btd = PartitionSpec(*spec_bt, tuple(columns) or None)
        rows_vd = gather(shared_vd, dtype, keep=1)
        x_btd = _look_up(rows_vd, reshard(tokens_bt, spec_bt), spec_btd)
        return reshard(x_btd, activation("btd")) * jnp.asarray(shared_vd.shape[1] ** 0.5, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _look_up(rows_vd: jax.Array, tokens_bt: jax.Array, spec_btd: PartitionSpec) -> jax.Array:
    """The row of each token. The gradient of a row is summed over its tokens in float32: in
    bfloat16 the sum of a frequent token stops growing after a few hundred."""
    return rows_vd.at[tokens_bt].get(out_sharding=spec_btd, mode="clip")


def _look_up_forward(rows_vd, tokens_bt, spec_btd):
    return _look_up(rows_vd, tokens_bt, spec_btd), (rows_vd, tokens_bt)


def _look_up_backward(spec_btd, kept, gradient_btd):
    rows_vd, tokens_bt = kept
    wide_vd = rows_vd.astype(jnp.float32)  # its shape and split alone are used
    _, transpose = jax.vjp(
        lambda rows_vd: rows_vd.at[tokens_bt].get(out_sharding=spec_btd, mode="clip"), wide_vd
    )
    (gradient_vd,) = transpose(gradient_btd.astype(jnp.float32))
    return gradient_vd.astype(rows_vd.dtype), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def _without(axes: tuple[str, ...], removed: list[str]) -> tuple[str, ...] | None:
    return tuple(axis for axis in axes if axis not in removed) or None
