"""The splash kernel and, beside it, what soft tokens see of their image behind themselves.

Two sums over keys that have none in common, merged to one softmax by the logs of their
denominators. Given the merged one, the kernel's own backward pass and that of the other sum give
the gradients; neither makes a [t, s] array.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemma_train.kernels.attention import along_seq, image_triangle, splash_kernel
from gemma_train.kernels.attention.mask import AttentionMask
from gemma_train.kernels.attention.splash_kernel import Kernel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Keys:
    """Keys and values, and which of them each query may see."""

    key_bskh: jax.Array
    value_bskh: jax.Array
    mask: AttentionMask


@dataclass(frozen=True)
class Form:
    """What of the kernel the other sum has to know."""

    soft_cap: float | None
    kept_as: str
    swapped: bool  # its tables are of queries as `along_seq.mirrored` puts them

    def order(self, x: jax.Array) -> jax.Array:
        """Queries in order as the kernel wants them, and back."""
        return along_seq.mirrored(x) if self.swapped else x


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_with_images(
    kernel: Kernel, query_btnh: jax.Array, causal: Keys, later: Keys, form: Form
) -> jax.Array:
    """[b, t, n, h] weighted values: of the causal keys as the kernel sees them, and of later soft
    tokens among the others, which begin where the queries do."""
    return _forward(kernel, query_btnh, causal, later, form)[0]


def _forward(kernel: Kernel, query_btnh: jax.Array, causal: Keys, later: Keys, form: Form):
    order, mask, soft_cap = form.order, causal.mask, form.soft_cap
    causal_btnh, causal_btn = splash_kernel.output_and_denominator(
        kernel, order(query_btnh), causal.key_bskh, causal.value_bskh, mask.with_queries(order)
    )
    causal_btnh, causal_btn = order(causal_btnh), order(causal_btn)
    later_btn = image_triangle.log_denominator(query_btnh, later.key_bskh, later.mask, soft_cap)
    denominator_btn = jnp.logaddexp(causal_btn, later_btn)
    later_btnh, _ = image_triangle.weighted(
        query_btnh, later.key_bskh, later.value_bskh, later.mask, soft_cap, denominator_btn
    )
    share_btn = jnp.exp(causal_btn - denominator_btn)
    output_btnh = (causal_btnh * share_btn[..., None] + later_btnh).astype(query_btnh.dtype)
    output_btnh = checkpoint_name(output_btnh, form.kept_as)
    denominator_btn = checkpoint_name(denominator_btn, form.kept_as)
    return output_btnh, (kernel, query_btnh, causal, later, output_btnh, denominator_btn)


def _backward(form: Form, kept: tuple, cotangent_btnh: jax.Array):
    kernel, query_btnh, causal, later, output_btnh, denominator_btn = kept
    order, mask, soft_cap = form.order, causal.mask, form.soft_cap
    of_query_btnh, of_key_bskh, of_value_bskh = splash_kernel.gradients(
        kernel,
        order(query_btnh),
        causal.key_bskh,
        causal.value_bskh,
        mask.with_queries(order),
        order(output_btnh),
        order(denominator_btn),
        order(cotangent_btnh),
    )

    def of_images(query_btnh: jax.Array, key_bskh: jax.Array, value_bskh: jax.Array):
        return image_triangle.weighted(
            query_btnh, key_bskh, value_bskh, later.mask, soft_cap, denominator_btn
        )

    _, pull = jax.vjp(of_images, query_btnh, later.key_bskh, later.value_bskh)
    # A weight p changes by p * (cotangent . (value - output)): the second term is its mass's.
    wide_btnh = cotangent_btnh.astype(jnp.float32)
    of_mass_btn = -jnp.sum(wide_btnh * output_btnh, axis=-1)
    more_btnh, later_key_bskh, later_value_bskh = pull((wide_btnh, of_mass_btn))
    no_mask: Any = None  # integers have no gradients
    of_causal = Keys(of_key_bskh, of_value_bskh, no_mask)
    of_later = Keys(later_key_bskh, later_value_bskh, no_mask)
    return None, order(of_query_btnh) + more_btnh, of_causal, of_later


attend_with_images.defvjp(_forward, _backward)
