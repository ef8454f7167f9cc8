"""Where the tokens of packed rows stand, and what a call by itself is given of that."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each token stands: what rotary positions and attention's mask are made of."""

    positions_bt: jax.Array  # within its segment
    segments_bt: jax.Array  # from 1; 0 is padding
    images_bt: jax.Array | None = None  # the image whose soft token it is, or -1; None: no images


def checked(config: GemmaConfig, *inputs_bt: jax.typing.ArrayLike | None) -> list[jax.Array | None]:
    """(tokens, positions, segment ids) as arrays. Raises `UserError` for shapes and ids that
    cannot be; ids are looked at where they are known, not in a trace."""
    arrays = []
    for name, given in zip(("tokens", "positions", "segment ids"), inputs_bt, strict=True):
        array = given if isinstance(given, jax.Array) or given is None else np.asarray(given)
        if array is not None and (array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.integer)):
            raise UserError(f"{name} are {array.dtype} {array.shape}: give integers [batch, time]")
        if array is not None and arrays and array.shape != arrays[0].shape:
            raise UserError(f"{name} have shape {array.shape}, tokens {arrays[0].shape}")
        arrays.append(array)
    if not isinstance(arrays[0], jax.core.Tracer) and arrays[0].size:
        known = np.asarray(arrays[0])
        low, high = known.min(), known.max()
        require(
            low >= 0 and high < config.vocabulary,
            f"tokens go from {low} to {high}, this model's from 0 to {config.vocabulary - 1}",
        )
    return arrays


def packing(
    tokens_bt: jax.Array, positions_bt: jax.Array | None, segments_bt: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens, positions, segments), int32 [b, t], not split; what is None as in `Gemma.logits`."""
    segments_bt = jnp.asarray(jnp.ones_like(tokens_bt) if segments_bt is None else segments_bt)
    if positions_bt is None:
        places_t = jnp.arange(tokens_bt.shape[1])
        begins_bt = jnp.diff(segments_bt, axis=1, prepend=segments_bt[:, :1] - 1) != 0
        starts_bt = jax.lax.cummax(jnp.where(begins_bt, places_t, 0), axis=1)
        positions_bt = places_t - starts_bt
    found = (tokens_bt, positions_bt, segments_bt)
    tokens_bt, positions_bt, segments_bt = (jnp.asarray(x_bt, jnp.int32) for x_bt in found)
    return tokens_bt, positions_bt, segments_bt
