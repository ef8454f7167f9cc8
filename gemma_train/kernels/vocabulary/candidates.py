"""A teacher's candidates without its logits: token chunks, split vocabulary, a few hundred kept.

As in the loss, a scan takes chunks of tokens and computes their logits against this device's rows
of the table; the sampler's choice of them is all that stays. Random numbers are counted, not drawn
in turn: each is one block of Threefry of a token's draw and a vocabulary id (or a draw's number),
so that a shard makes those of its own ids alone. That is about 120 integer operations an id beside
the logits' 2 x width FLOPs, and is fused into the search for the largest.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from gemma_train.axes import activation
from gemma_train.kernels.vocabulary.running_sum import running_sum
from gemma_train.kernels.vocabulary.split import (
    chunks,
    first_row,
    gathered,
    joined,
    own,
    scattered,
    whole_rows,
)
from gemma_train.mesh import on_tpu
from gemma_train.samplers import Counts, Dense, Gumbel, Multinomial, Priority, Sampler, TopK
from gemma_train.zero3 import axes_of

BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


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
    rows, columns = axes_of(table_vd)
    table_spec = jax.typeof(table_vd).sharding.spec
    shard = partial(
        _on_one_shard,
        sampler=sampler,
        rows=rows,
        columns=columns,
        temperature=temperature,
        soft_cap=soft_cap,
        chunk=chunk,
    )
    return jax.shard_map(
        shard,
        in_specs=(activation("btd"), table_spec, activation("bt")),
        out_specs=(activation("btq"), activation("btq")),
        check_vma=False,
    )(states_btd, table_vd, draws_bt)


def draw_from_logits(
    logits_cv: jax.Array, draws_c: jax.Array, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """The same from whole float32 logits, by one device: (candidates, probabilities) [c, q]."""
    return _drawn(logits_cv, draws_c, sampler, rows=(), first=0)


def uniforms(draws_c: jax.Array, numbers_v: jax.Array) -> jax.Array:
    """[c, v] numbers in (0, 1), float32: each a function of one draw and one number, both uint32.

    Multiples of 2**-32 and a half, so that small ones are exact to float32's relative precision.
    """
    key = jax.random.key(0, impl="threefry2x32")

    def bits(draw: jax.Array, number: jax.Array) -> jax.Array:
        """`fold_in` is one block of the generator, and `draw`'s own a block a token."""
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, draw), number))[0]

    over_numbers = jax.vmap(bits, (None, 0))
    bits_cv = jax.vmap(over_numbers, (0, None))(draws_c, numbers_v)
    return jnp.minimum((bits_cv.astype(jnp.float32) + 0.5) * 2.0**-32, BELOW_ONE)


def _on_one_shard(
    states_btd, table_vd, draws_bt, *, sampler, rows, columns, temperature, soft_cap, chunk
):
    """A scan over chunks of this device's tokens, each beside those of the devices that share."""
    table_vd = whole_rows(table_vd.astype(states_btd.dtype), columns)
    first, tokens = first_row(table_vd, rows), draws_bt.size

    def body(_, one):
        states_cd, draws_c = (gathered(x, rows) for x in one)
        logits_cv = jnp.einsum("cd,vd->cv", states_cd, table_vd, preferred_element_type=jnp.float32)
        if soft_cap is not None:
            logits_cv = soft_cap * jnp.tanh(logits_cv / soft_cap)
        return None, _drawn(logits_cv / temperature, draws_c, sampler, rows=rows, first=first)

    _, found = jax.lax.scan(body, None, chunks((states_btd, draws_bt), chunk))

    def in_place(x: jax.Array) -> jax.Array:
        return x.reshape(-1, x.shape[-1])[:tokens].reshape(*draws_bt.shape, -1)

    return in_place(found[0]), in_place(found[1])


def _drawn(
    logits_cv: jax.Array, draws_c: jax.Array, sampler: Sampler, *, rows: Sequence[str], first
) -> tuple[jax.Array, jax.Array]:
    """(ids, weights) of this device's own tokens, from its own ids' logits of those of all.

    Ids are counted from `first`.
    """
    match sampler:
        case TopK() | Gumbel():
            _, ids_cq, logits_cq = _largest(logits_cv, draws_c, sampler, rows, first)
            return ids_cq, jax.nn.softmax(logits_cq)
        case Priority():
            scores_cq, ids_cq, logits_cq = _largest(logits_cv, draws_c, sampler, rows, first)
            kept, normalizer_c = sampler.candidates, own(_normalizer(logits_cv, rows), rows)
            # The first that is not kept: the bar. Where all are kept there is none.
            larger_cq = logits_cq[:, :kept]
            if scores_cq.shape[1] > kept:
                larger_cq = jnp.maximum(larger_cq, scores_cq[:, kept:])
            return ids_cq[:, :kept], jnp.exp(larger_cq - normalizer_c[:, None])
        case Multinomial():
            return _distinct(*_with_replacement(logits_cv, draws_c, sampler, rows, first))
        case Counts():
            ids_cq, _ = _with_replacement(logits_cv, draws_c, sampler, rows, first)
            return ids_cq, jnp.full(ids_cq.shape, 1.0 / sampler.candidates, jnp.float32)
        case Dense():
            every_cv = joined(logits_cv, rows)
            ids_v = jnp.arange(every_cv.shape[1], dtype=jnp.int32)
            return jnp.broadcast_to(ids_v, every_cv.shape), jax.nn.softmax(every_cv)


def _largest(
    logits_cv: jax.Array, draws_c: jax.Array, sampler: TopK | Gumbel | Priority, rows, first
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(scores, ids, logits) of the largest logits plus noise: one mechanism for three samplers.

    In falling order; of equals the lower id. A shard's own largest, then the largest of those.
    """
    scores_cv, count = logits_cv, sampler.candidates
    if not isinstance(sampler, TopK):
        uniform_cv = uniforms(draws_c, _own_ids(logits_cv, first))
        if isinstance(sampler, Gumbel):
            scores_cv -= jnp.log(-jnp.log1p(-uniform_cv))
        else:
            scores_cv -= jnp.log(uniform_cv)
            count += 1
    here = min(count, logits_cv.shape[1])
    if isinstance(sampler, TopK) and sampler.recall < 1.0:
        scores_cq, places_cq = jax.lax.approx_max_k(scores_cv, here, recall_target=sampler.recall)
    else:
        scores_cq, places_cq = jax.lax.top_k(scores_cv, here)
        if on_tpu():
            # Sliced before it is whole, TPUs would sort all of it: 4 GiB at [1024, 262144], not 1.
            # On CPUs, where it changes nothing, XLA of jaxlib 0.11.2 dies of it.
            scores_cq, places_cq = jax.lax.optimization_barrier((scores_cq, places_cq))
    logits_cq = jnp.take_along_axis(logits_cv, places_cq, axis=1)
    if not rows:
        return scores_cq, places_cq + first, logits_cq
    scores_cq, ids_cq, logits_cq = (
        joined(x, rows) for x in (scores_cq, places_cq + first, logits_cq)
    )
    scores_cq, places_cq = jax.lax.top_k(scores_cq, min(count, scores_cq.shape[1]))
    ids_cq, logits_cq = (jnp.take_along_axis(x, places_cq, axis=1) for x in (ids_cq, logits_cq))
    return scores_cq, ids_cq, logits_cq


def _with_replacement(
    logits_cv: jax.Array, draws_c: jax.Array, sampler: Multinomial | Counts, rows, first
) -> tuple[jax.Array, jax.Array]:
    """(ids, logits) of independent draws: where each uniform number lies among the running sums.

    A shard finds those that lie among its own ids, by the sums of the shards before it.
    """
    powers_cv = jnp.exp(logits_cv - _peak(logits_cv, rows)[:, None])
    running = running_sum(powers_cv)
    total_c = until_c = running.total_c
    below_c = jnp.zeros_like(total_c)
    if rows:
        sums = jax.lax.all_gather(total_c, tuple(rows))  # [shard, c]
        sums = jnp.cumsum(sums, axis=0)
        shard, total_c = jax.lax.axis_index(tuple(rows)), sums[-1]
        until_c = sums[shard]
        below_c = jnp.where(shard > 0, sums[shard - 1], 0.0)
    numbers_q = jnp.arange(sampler.candidates, dtype=jnp.uint32)
    wanted_cq = uniforms(draws_c, numbers_q) * total_c[:, None]
    is_here_cq = (below_c[:, None] <= wanted_cq) & (wanted_cq < until_c[:, None])
    places_cq = running.places(wanted_cq - below_c[:, None])
    places_cq = jnp.minimum(places_cq, logits_cv.shape[1] - 1)
    logits_cq = jnp.take_along_axis(logits_cv, places_cq, axis=1)
    found = jnp.where(is_here_cq, places_cq + first, 0), jnp.where(is_here_cq, logits_cq, 0.0)
    return scattered(found[0], rows), scattered(found[1], rows)


def _distinct(ids_cq: jax.Array, logits_cq: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ids in rising order, probabilities renormalised over the distinct ones, repeats 0)."""
    ids_cq, logits_cq = jax.lax.sort((ids_cq, logits_cq), num_keys=1)
    is_first_cq = jnp.diff(ids_cq, axis=1, prepend=-1) > 0
    return ids_cq, jax.nn.softmax(logits_cq, where=is_first_cq)


def _own_ids(logits_cv: jax.Array, first: jax.Array | int) -> jax.Array:
    return jnp.arange(logits_cv.shape[1], dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32)


def _peak(logits_cv: jax.Array, rows: Sequence[str]) -> jax.Array:
    """The largest logit of each token, of all shards."""
    peak_c = jnp.max(logits_cv, axis=1)
    return jax.lax.pmax(peak_c, tuple(rows)) if rows else peak_c


def _normalizer(logits_cv: jax.Array, rows: Sequence[str]) -> jax.Array:
    """The log of the softmax's denominator over all of the vocabulary."""
    peak_c = _peak(logits_cv, rows)
    sum_c = jnp.sum(jnp.exp(logits_cv - peak_c[:, None]), axis=1)
    return jnp.log(jax.lax.psum(sum_c, tuple(rows)) if rows else sum_c) + peak_c
