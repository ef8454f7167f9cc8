"""The vocabulary loss of one chunk of tokens: from its logits, the sums and the gradient by them.

Two forms, told apart by the targets: one token each, or a distribution. `rows` are the mesh axes
over which the table's rows are split: each device sees its own part of the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gemma_train.kernels.vocabulary.soft_target import DenseTarget, soft_target
from gemma_train.kernels.vocabulary.terms import ChunkTargets, LossTerms


class Chunk(NamedTuple):
    """Sums, and the gradient by the logits: powers * scale, less pull at the hard target."""

    sums: tuple[jax.Array, jax.Array]  # loss and cross-entropy
    powers_cv: jax.Array  # in the states' dtype
    scale_c: jax.Array
    pull_c: jax.Array | None  # None where the powers are less the target already


def hard_chunk(
    states_cd: jax.Array,
    table_vd: jax.Array,
    targets_c: jax.Array,
    weights_c: jax.Array,
    terms: LossTerms,
    rows: list[str],
    *,
    apart: bool,
) -> Chunk:
    """One target each; it counts from this device's first row, and elsewhere is out of range.

    With `apart` the pull is for the caller to take, row by row, and the powers are the softmax's
    numerator as it comes: one pass over [c, v] less. Otherwise they are the whole gradient.
    """
    logits_cv, slope_cv = _logits(states_cd, table_vd, terms)
    peak_c = jnp.max(logits_cv, axis=1)
    if rows:
        peak_c = jax.lax.pmax(peak_c, tuple(rows))
    if not apart:
        is_target_cv = jax.lax.broadcasted_iota(jnp.int32, logits_cv.shape, 1) == targets_c[:, None]
        target_c = jnp.sum(jnp.where(is_target_cv, logits_cv, 0.0), axis=1)
    else:
        target_c = jnp.take_along_axis(logits_cv, targets_c[:, None], axis=1)[:, 0]
    powers_cv = jnp.exp(logits_cv - peak_c[:, None])
    denominator_c = jnp.sum(powers_cv, axis=1)
    if rows:
        denominator_c, target_c = jax.lax.psum((denominator_c, target_c), tuple(rows))
    normalizer_c = jnp.log(denominator_c) + peak_c
    cross_entropy = jnp.sum(weights_c * (normalizer_c - target_c))
    loss = cross_entropy + terms.z_loss * jnp.sum(weights_c * jnp.square(normalizer_c))
    scale_c = weights_c * (1.0 + 2.0 * terms.z_loss * normalizer_c) / denominator_c
    pull_c = weights_c
    if terms.soft_cap is not None:
        pull_c *= 1.0 - jnp.square(target_c / terms.soft_cap)
    if not apart:
        powers_cv = powers_cv * scale_c[:, None] - jnp.where(is_target_cv, weights_c[:, None], 0.0)
        scale_c = jnp.ones_like(scale_c)
    powers_cv = (powers_cv * slope_cv).astype(states_cd.dtype)
    return Chunk((loss, cross_entropy), powers_cv, scale_c, pull_c)


def soft_chunk(
    states_cd: jax.Array,
    table_vd: jax.Array,
    targets: ChunkTargets,
    weights_c: jax.Array,
    terms: LossTerms,
    rows: list[str],
) -> Chunk:
    """A distribution each.

    In float32 the powers stay the softmax's numerator, with the target scaled to be taken from
    it, so that no other pass over [c, v] is needed; in bfloat16 they are rounded as the gradient.
    """
    logits_cv, slope_cv = _logits(states_cd, table_vd, terms)
    target = soft_target(targets, logits_cv.shape[1], states_cd.dtype, terms)
    hard_c = target.at(logits_cv, targets.hard_c)
    plain = terms.temperature == 1.0 and terms.student == "full"
    usual_c = None if plain else _softmax(logits_cv, rows).normalizer_c
    logits_cv /= terms.temperature
    dot_c, mass_c = target.sums(logits_cv)
    if terms.student == "candidates":
        assert isinstance(target, DenseTarget)
        logits_cv = jnp.where(target.target_cv > 0.0, logits_cv, -jnp.inf)
    powers_cv, normalizer_c, denominator_c, _ = _softmax(logits_cv, rows)
    if rows:
        dot_c, mass_c, hard_c = jax.lax.psum((dot_c, mass_c, hard_c), tuple(rows))
    usual_c = normalizer_c if usual_c is None else usual_c
    cross_entropy = jnp.sum(weights_c * (usual_c - hard_c))
    z_loss_c = jnp.where(mass_c == 0.0, 0.0, terms.z_loss)  # without a target there is no loss
    loss_c = mass_c * normalizer_c - dot_c + z_loss_c * jnp.square(normalizer_c)
    loss = jnp.sum(weights_c * loss_c)
    # The gradient by the logits: weight * (total * powers / denominator - target).
    total_c, weights_c = mass_c + 2.0 * z_loss_c * normalizer_c, weights_c / terms.temperature
    if states_cd.dtype == jnp.float32:
        # A total of 0 is a token without a target: there is nothing to take.
        powers_cv = target.taken(powers_cv, denominator_c / jnp.where(total_c == 0, 1.0, total_c))
        scale_c = weights_c * total_c / denominator_c
    else:
        powers_cv = powers_cv * (weights_c * total_c / denominator_c)[:, None]
        powers_cv, scale_c = target.taken(powers_cv, weights_c), jnp.ones_like(weights_c)
    powers_cv = (powers_cv * slope_cv).astype(states_cd.dtype)
    return Chunk((loss, cross_entropy), powers_cv, scale_c, None)


def scored_chunk(
    states_cd: jax.Array,
    table_vd: jax.Array,
    targets_c: jax.Array,
    terms: LossTerms,
    rows: list[str],
) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy, whether no token is likelier than the target) of each token: figures alone.

    Targets count from this device's first row, and elsewhere are out of range.
    """
    logits_cv, _ = _logits(states_cd, table_vd, terms)
    is_target_cv = jax.lax.broadcasted_iota(jnp.int32, logits_cv.shape, 1) == targets_c[:, None]
    target_c = jnp.sum(jnp.where(is_target_cv, logits_cv, 0.0), axis=1)
    if rows:
        target_c = jax.lax.psum(target_c, tuple(rows))
    softmax = _softmax(logits_cv, rows)
    return softmax.normalizer_c - target_c, target_c >= softmax.peak_c


def _logits(
    states_cd: jax.Array, table_vd: jax.Array, terms: LossTerms
) -> tuple[jax.Array, jax.Array | float]:
    """(logits [c, v] in float32, their slope by those before the soft cap)."""
    logits_cv = jnp.einsum("cd,vd->cv", states_cd, table_vd, preferred_element_type=jnp.float32)
    if terms.soft_cap is None:
        return logits_cv, 1.0
    tanh_cv = jnp.tanh(logits_cv / terms.soft_cap)
    return terms.soft_cap * tanh_cv, 1.0 - jnp.square(tanh_cv)


class _Softmax(NamedTuple):
    powers_cv: jax.Array  # the numerators
    normalizer_c: jax.Array  # log of the sum of the logits' exponentials
    denominator_c: jax.Array  # sum of the numerators; 1 where every logit is -inf
    peak_c: jax.Array  # the largest logit, which the numerators are taken from; 0 there


def _softmax(logits_cv: jax.Array, rows: list[str]) -> _Softmax:
    peak_c = jnp.max(logits_cv, axis=1)
    if rows:
        peak_c = jax.lax.pmax(peak_c, tuple(rows))
    peak_c = jnp.where(peak_c == -jnp.inf, 0.0, peak_c)
    powers_cv = jnp.exp(logits_cv - peak_c[:, None])
    denominator_c = jnp.sum(powers_cv, axis=1)
    if rows:
        denominator_c = jax.lax.psum(denominator_c, tuple(rows))
    denominator_c = jnp.where(denominator_c == 0.0, 1.0, denominator_c)
    return _Softmax(powers_cv, jnp.log(denominator_c) + peak_c, denominator_c, peak_c)
