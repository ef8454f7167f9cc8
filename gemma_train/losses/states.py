"""A batch through a model, to the states that every loss begins from."""

import jax

from gemma_train.data.example import Batch
from gemma_train.model import Gemma
from gemma_train.model.soft_tokens import Images


def final_states(model: Gemma, batch: Batch) -> jax.Array:
    """The final normed [b, t, d] states of a batch, its images in their places."""
    images = None
    if batch.images_bipe is not None:
        images = Images(embeddings_bipe=batch.images_bipe, soft_bt=batch.soft_bt)
    states_btd, _ = model(batch.tokens_bt, batch.positions_bt, batch.segments_bt, images=images)
    return states_btd
