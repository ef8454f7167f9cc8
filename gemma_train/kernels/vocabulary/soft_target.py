"""A chunk's soft targets against its logits: as a dense array from one-hot products, or scattered.

A token's few hundred candidates are looked for in the rows of the table that a device holds; those
elsewhere weigh nothing here. On TPU, which gathers and scatters slowly, an id is a block and a row
within it, T[c, j, r] = sum_q p[c, q] [block = j] [row = r] is a batched matrix product, and equal
candidates add up: 2 * candidates * vocabulary operations a token. In bfloat16 each of the two
holds a factor of p. Elsewhere candidates are gathered from the logits and scattered into the
gradient.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gemma_train.kernels.vocabulary.terms import ChunkTargets, LossTerms, Targets
from gemma_train.mesh import on_tpu

LANES = 128  # of a TPU's tiles: blocks of the vocabulary are multiples of it
_SCALES = 32  # that a weight's larger factor is chosen from


def is_one_hot(terms: LossTerms) -> bool:
    """The one door: which form soft targets take on the mesh in force, or as it is asked."""
    form = terms.soft_form or ("one_hot" if on_tpu() else "scatter")
    return form == "one_hot"


def sent(targets: Targets, terms: LossTerms, dtype: jax.typing.DTypeLike) -> Targets:
    """The targets as they travel between devices: weights as the one-hot form multiplies them."""
    weights_btq = targets.probabilities_btq
    if weights_btq is None or dtype == jnp.float32 or not is_one_hot(terms):
        return targets
    scales_btq, rests_btq = factors(weights_btq, dtype)
    return replace(targets, probabilities_btq=rests_btq, scales_btq=scales_btq)


@dataclass(frozen=True, kw_only=True)
class DenseTarget:
    """Targets as an array over this device's rows of the table, and the text's token beside it."""

    target_cv: jax.Array

    def sums(self, logits_cv: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(sum of target * logits, sum of target), of this device's rows."""
        return jnp.sum(self.target_cv * logits_cv, axis=1), jnp.sum(self.target_cv, axis=1)

    def taken(self, powers_cv: jax.Array, share_c: jax.Array) -> jax.Array:
        """The powers less share * target."""
        return powers_cv - self.target_cv * share_c[:, None]

    def at(self, logits_cv: jax.Array, token_c: jax.Array) -> jax.Array:
        """The logit of one token each: 0 where it is not among this device's rows."""
        return jnp.sum(jnp.where(_is_token(logits_cv, token_c), logits_cv, 0.0), axis=1)


@dataclass(frozen=True, kw_only=True)
class ScatteredTarget:
    """Targets as they come: ids that count from this device's first row, and their weights."""

    candidates_cq: jax.Array
    probabilities_cq: jax.Array

    def sums(self, logits_cv: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_cq = _gathered(logits_cv, self.candidates_cq)
        is_here_cq = (self.candidates_cq >= 0) & (self.candidates_cq < logits_cv.shape[1])
        here_cq = jnp.where(is_here_cq, self.probabilities_cq, 0.0)
        return jnp.sum(here_cq * logits_cq, axis=1), jnp.sum(here_cq, axis=1)

    def taken(self, powers_cv: jax.Array, share_c: jax.Array) -> jax.Array:
        return _added(powers_cv, self.candidates_cq, -self.probabilities_cq * share_c[:, None])

    def at(self, logits_cv: jax.Array, token_c: jax.Array) -> jax.Array:
        return _gathered(logits_cv, token_c[:, None])[:, 0]


def soft_target(
    targets: ChunkTargets, rows: int, dtype: jax.typing.DTypeLike, terms: LossTerms
) -> DenseTarget | ScatteredTarget:
    """The target of a chunk over `rows` rows of the table, in float32, whatever the dtype.

    In bfloat16 the one-hot form's weights are off by one in 10,000, and the mass that `sums` gives
    is theirs: a gradient still sums to nothing over the vocabulary.
    """
    nothing_cv = jnp.zeros((targets.hard_c.size, rows), jnp.float32)
    if is_one_hot(terms):
        target_cv = nothing_cv
        if (candidates_cq := targets.candidates_cq) is not None:
            weights = targets.probabilities_cq, targets.scales_cq
            target_cv = one_hot_sum(candidates_cq, *weights, rows, dtype)
        if (weights_c := targets.hard_weights_c) is not None:
            is_token_cv = _is_token(target_cv, targets.hard_c)
            target_cv += jnp.where(is_token_cv, weights_c[:, None], 0.0)
        return DenseTarget(target_cv=target_cv)
    found = _joined(targets)
    if terms.student == "full":
        return found
    return DenseTarget(target_cv=_added(nothing_cv, found.candidates_cq, found.probabilities_cq))


def _joined(targets: ChunkTargets) -> ScatteredTarget:
    """Candidates, and where it has a weight the text's token as one more."""
    ids, weights = [targets.candidates_cq], [targets.probabilities_cq]
    if targets.hard_weights_c is not None:
        ids, weights = [*ids, targets.hard_c[:, None]], [*weights, targets.hard_weights_c[:, None]]
    ids, weights = ([x for x in parts if x is not None] for parts in (ids, weights))
    return ScatteredTarget(
        candidates_cq=jnp.concatenate(ids, axis=1),
        probabilities_cq=jnp.concatenate(weights, axis=1),
    )


def one_hot_sum(
    candidates_cq: jax.Array,
    probabilities_cq: jax.Array,
    scales_cq: jax.Array | None,
    rows: int,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """[c, v] in float32: the weight of every one of `rows` tokens, multiplied in `dtype`."""
    block = block_length(rows)
    blocks = -(-rows // block)
    blocks_cqj = jax.nn.one_hot(candidates_cq // block, blocks, dtype=dtype)
    rows_cqr = jax.nn.one_hot(candidates_cq % block, block, dtype=dtype)
    if scales_cq is not None:
        blocks_cqj *= scales_cq.astype(dtype)[..., None]
    exact = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    sums_cjr = jnp.einsum(
        "cqj,cqr->cjr",
        blocks_cqj,
        rows_cqr * probabilities_cq.astype(dtype)[..., None],
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    return sums_cjr.reshape(-1, blocks * block)[:, :rows]


def factors(weights_btq: jax.Array, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Two arrays in `dtype` whose products are the weights: nearer than one array can be.

    The first is the one of `_SCALES` numbers from 1 on that leaves the second the least to round.
    """
    bits = jnp.finfo(dtype)
    step = 2.0**-bits.nmant
    scales_s = (1.0 + step * jnp.arange(_SCALES)).reshape(-1, *(1,) * weights_btq.ndim)
    # A cast there and back may be left out by XLA; this one may not.
    rests_sbtq = jax.lax.reduce_precision(weights_btq / scales_s, bits.nexp, bits.nmant)
    best_btq = jnp.argmin(jnp.abs(rests_sbtq * scales_s - weights_btq), axis=0)
    scales_btq = 1.0 + step * best_btq
    return scales_btq.astype(dtype), (weights_btq / scales_btq).astype(dtype)


def block_length(rows: int) -> int:
    """Tokens to a block: a power of two near the square root, for that many are compared with."""
    return max(LANES, 1 << ((rows - 1).bit_length() + 1) // 2)


def _is_token(logits_cv: jax.Array, token_c: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits_cv.shape, 1) == token_c[:, None]


def _within(candidates_cq: jax.Array, rows: int) -> jax.Array:
    """Ids with the negative ones beyond the end: indexing would count them from it."""
    return jnp.where(candidates_cq < 0, rows, candidates_cq)


def _gathered(logits_cv: jax.Array, candidates_cq: jax.Array) -> jax.Array:
    """The candidates' logits: 0 of those that are not among this device's rows."""
    ids_cq = _within(candidates_cq, logits_cv.shape[1])
    return jnp.take_along_axis(logits_cv, ids_cq, axis=1, mode="fill", fill_value=0.0)


def _added(x_cv: jax.Array, candidates_cq: jax.Array, values_cq: jax.Array) -> jax.Array:
    """x with the values added at the candidates that are among this device's rows."""
    chunk_c1 = jnp.arange(x_cv.shape[0])[:, None]
    ids_cq = _within(candidates_cq, x_cv.shape[1])
    return x_cv.at[chunk_c1, ids_cq].add(values_cq, mode="drop")
