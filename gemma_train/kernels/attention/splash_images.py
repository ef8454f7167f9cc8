"""The splash kernel and, beside it, what soft tokens see of their image behind themselves.

Two sums over keys that have none in common, merged to one softmax by the logs of their
denominators. Given the merged one, the kernel's own backward pass and that of the other sum give
the gradients; neither makes a [t, s] array.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemma_train.kernels.attention import images, splash_kernel
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.kernels.attention.splash_kernel import Kernel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Runs:
    """Queries in runs of one `length`, end to end; each begins at a key, and looks `behind`."""

    starts: tuple[jax.Array | int, ...]
    length: int = field(metadata={"static": True}, kw_only=True)
    behind: int = field(metadata={"static": True}, kw_only=True)

    def queries(self, x: jax.Array) -> jax.Array:
        """[b, t, ...] -> [runs * b, length, ...]."""
        return jnp.concatenate(jnp.split(x, len(self.starts), axis=1))

    def keys(self, x: jax.Array) -> jax.Array:
        """[b, s, ...] -> [runs * b, length + behind, ...]: from each run's first query on."""
        padded = jnp.pad(x, ((0, 0), (0, self.behind), *((0, 0),) * (x.ndim - 2)))
        size = self.length + self.behind
        slices = [jax.lax.dynamic_slice_in_dim(padded, one, size, axis=1) for one in self.starts]
        return jnp.concatenate(slices)

    def rows(self, x: jax.Array) -> jax.Array:
        """[runs * b, length, ...] -> [b, t, ...]."""
        return jnp.concatenate(jnp.split(x, len(self.starts)), axis=1)

    def mask(self, mask: AttentionMask) -> AttentionMask:
        return mask.with_queries(self.queries).with_keys(self.keys)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend_with_images(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    runs: Runs,
    keys: int,
) -> jax.Array:
    """[b, t, n, h] weighted values: of the first `keys` keys as the kernel sees them, and of later
    soft tokens."""
    return _forward(kernel, query_btnh, key_bskh, value_bskh, mask, runs, keys)[0]


def _forward(kernel, query_btnh, key_bskh, value_bskh, mask, runs, keys):
    causal_btnh, causal_btn = splash_kernel.output_and_denominator(
        kernel, query_btnh, key_bskh[:, :keys], value_bskh[:, :keys], _causal(mask, keys)
    )
    soft_cap, later_mask = _soft_cap(kernel), runs.mask(mask)
    later_btn = runs.rows(
        images.log_denominator(runs.queries(query_btnh), runs.keys(key_bskh), later_mask, soft_cap)
    )
    denominator_btn = jnp.logaddexp(causal_btn, later_btn)
    later_btnh, _ = _later(kernel, query_btnh, key_bskh, value_bskh, mask, runs, denominator_btn)
    share_btn = jnp.exp(causal_btn - denominator_btn)
    output_btnh = (causal_btnh * share_btn[..., None] + later_btnh).astype(query_btnh.dtype)
    kept_as = kernel.kwargs["residual_checkpoint_name"]
    output_btnh = checkpoint_name(output_btnh, kept_as)
    denominator_btn = checkpoint_name(denominator_btn, kept_as)
    arrays = kernel, query_btnh, key_bskh, value_bskh, mask, runs
    return output_btnh, (*arrays, output_btnh, denominator_btn)


def _backward(keys, kept, cotangent_btnh):
    kernel, query_btnh, key_bskh, value_bskh, mask, runs, output_btnh, denominator_btn = kept
    of_query, of_key, of_value = splash_kernel.gradients(
        kernel,
        query_btnh,
        key_bskh[:, :keys],
        value_bskh[:, :keys],
        _causal(mask, keys),
        output_btnh,
        denominator_btn,
        cotangent_btnh,
    )

    def later(query_btnh: jax.Array, key_bskh: jax.Array, value_bskh: jax.Array):
        return _later(kernel, query_btnh, key_bskh, value_bskh, mask, runs, denominator_btn)

    _, pull = jax.vjp(later, query_btnh, key_bskh, value_bskh)
    # A weight p changes by p * (cotangent . (value - output)): the second term is its mass's.
    wide_btnh = cotangent_btnh.astype(jnp.float32)
    more_of_query, more_of_key, more_of_value = pull(
        (wide_btnh, -jnp.sum(wide_btnh * output_btnh, axis=-1))
    )
    return (
        None,
        of_query + more_of_query,
        more_of_key.at[:, :keys].add(of_key),
        more_of_value.at[:, :keys].add(of_value),
        None,
        None,
    )


attend_with_images.defvjp(_forward, _backward)


def _later(
    kernel: Kernel,
    query_btnh: jax.Array,
    key_bskh: jax.Array,
    value_bskh: jax.Array,
    mask: AttentionMask,
    runs: Runs,
    denominator_btn: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(values, weights) of later soft tokens, as `images.weighted` has them."""
    found = images.weighted(
        runs.queries(query_btnh),
        runs.keys(key_bskh),
        runs.keys(value_bskh),
        runs.mask(mask),
        _soft_cap(kernel),
        runs.queries(denominator_btn),
    )
    return runs.rows(found[0]), runs.rows(found[1])


def _causal(mask: AttentionMask, keys: int) -> AttentionMask:
    return mask.with_keys(lambda x_bs: x_bs[:, :keys])


def _soft_cap(kernel: Kernel) -> float | None:
    return kernel.kwargs["attn_logits_soft_cap"]
