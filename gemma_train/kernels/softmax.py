"""Softmax over the keys a query may see, with Gemma 2's cap on the scores."""

import jax
import jax.numpy as jnp

# Finite, so that a row without any visible key (padding) gives equal weights and no NaN.
HIDDEN = -1e30


def masked_softmax(scores: jax.Array, seen: jax.Array, soft_cap: float | None) -> jax.Array:
    """Softmax of float32 [..., t, s] scores over s, the cap applied before the mask."""
    return jax.nn.softmax(masked_scores(scores, seen, soft_cap), axis=-1)


def masked_scores(scores: jax.Array, seen: jax.Array, soft_cap: float | None) -> jax.Array:
    """The scores, capped, of keys that are seen; `HIDDEN` of others."""
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jnp.where(seen, scores, HIDDEN)
