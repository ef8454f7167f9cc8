"""Rows through a model, and of each token its loss and whether it is the likeliest.

A batch holds as many tokens at every length, so that the longest rows set the memory; each length
is compiled once. A row of any length is asked of the model, also beyond its `context`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec, reshard

from gemma_train.axes import ACTIVATIONS
from gemma_train.data.example import Batch
from gemma_train.kernels.vocabulary.scores import token_scores
from gemma_train.kernels.vocabulary.terms import LossTerms
from gemma_train.losses.states import final_states
from gemma_train.model import Gemma
from gemma_train.placement import needed_rows, place


class Scores(NamedTuple):
    """Of the tokens that follow others in rows of t + 1."""

    loss_bt: np.ndarray  # float32, nats
    likeliest_bt: np.ndarray  # bool: no token of the vocabulary was likelier


Scorer = Callable[[np.ndarray], Scores]


def make_scorer(model: Gemma, mesh: Mesh, *, chunk: int, longest: int) -> Scorer:
    """A function that scores rows of ids, int32 [rows, t + 1], each one text, on the mesh in force.

    A device has about `longest` tokens at a time, and the logits of `chunk` of them.
    """
    parts = math.prod(mesh.shape[axis] for axis in ACTIVATIONS["b"])

    def score(ids_bt: np.ndarray) -> Scores:
        rows, length = ids_bt.shape[0], ids_bt.shape[1] - 1
        together = parts * max(longest // length, 1)
        mine = needed_rows(mesh, together)
        found = []
        for first in range(0, rows, together):
            of_batch_bt = ids_bt[np.minimum(np.arange(first, first + together), rows - 1)]
            batch = place(_batch(of_batch_bt[mine]), mesh, together)
            found.append(jax.tree.map(np.asarray, _scores(model, batch, chunk=chunk)))
        loss_bt, likeliest_bt = (np.concatenate(part)[:rows] for part in zip(*found, strict=True))
        return Scores(loss_bt, likeliest_bt)

    return score


def _batch(ids_bt: np.ndarray) -> Batch:
    """Rows of one segment each, whose positions count from 0."""
    tokens_bt, targets_bt = ids_bt[:, :-1], ids_bt[:, 1:]
    positions_bt = np.broadcast_to(np.arange(tokens_bt.shape[1], dtype=np.int32), tokens_bt.shape)
    return Batch(
        tokens_bt=tokens_bt,
        targets_bt=targets_bt,
        positions_bt=positions_bt,
        segments_bt=np.ones_like(tokens_bt),
        weights_bt=np.ones(tokens_bt.shape, np.float32),
    )


@partial(jax.jit, static_argnames="chunk")
def _scores(model: Gemma, batch: Batch, *, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`token_scores`, whole on every device."""
    terms = LossTerms(soft_cap=model.config.final_soft_cap, chunk=chunk)
    states_btd = final_states(model, batch)
    targets_bt = jnp.asarray(batch.targets_bt)
    loss_bt, likeliest_bt = token_scores(states_btd, model.embedding.table[...], targets_bt, terms)
    everywhere = PartitionSpec(None, None)
    return reshard(loss_bt, everywhere), reshard(likeliest_bt, everywhere)
