"""A teacher's candidates without its logits: token chunks, split vocabulary, a few hundred kept."""

import jax

from gemma_train.samplers import Sampler


def draw(
    states_btd: jax.Array,
    table_vd: jax.Array,
    draws_bt: jax.Array,
    sampler: Sampler,
    *,
    temperature: float,
    soft_cap: float | None,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """(candidates int32, probabilities float32) of shape [b, t, q]: see `samplers`.

    `states_btd` are a teacher's final states, `table_vd` its table as stored, split or whole. Equal
    `draws_bt`, uint32, are equal random numbers, however the arrays are split.
    """
    raise NotImplementedError
