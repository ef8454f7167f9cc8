"""How far a sampler's targets are from the teacher's own distribution, and what they take to store.

Every figure is a mean over the draws and the taught positions of a row, one for each row: rows are
what is independent, so that the standard error of a mean is that over rows.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemma_train.data.example import Row
from gemma_train.data.teacher_store.codec import codec
from gemma_train.kernels.vocabulary.candidates import draw_from_logits
from gemma_train.samplers import Counts, Gumbel, Multinomial, Priority, TopK

Kept = TopK | Gumbel | Multinomial | Counts | Priority
KINDS = {kind.__name__.lower(): kind for kind in (TopK, Gumbel, Multinomial, Counts, Priority)}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A row of text, what a teacher says at each position, and a student who is to learn it."""

    row: Row
    logits_tv: np.ndarray  # float32, of the teacher
    student_tv: np.ndarray | None = None  # float32, of the student
    table_vd: np.ndarray | None = None  # its table, without a soft cap behind it

    @property
    def taught(self) -> np.ndarray:
        """bool [t]: the positions that carry loss."""
        return self.row.weights > 0


class Drawn(NamedTuple):
    """Targets of one row, drawn several times: arrays of shape [m, t, q]."""

    candidates: np.ndarray
    probabilities: np.ndarray


class Mean(NamedTuple):
    """A mean over rows and its standard error."""

    value: float
    error: float


def power_law(exponent: float, *, vocabulary: int, rows: int, length: int) -> list[Lesson]:
    """A synthetic teacher: p ~ rank ** -exponent, over ids in an order of each position's own."""
    random = np.random.default_rng(0)
    falling = np.float32(-exponent * np.log(np.arange(1, vocabulary + 1)))
    lessons = []
    for _ in range(rows):
        tokens = random.integers(0, vocabulary, length, dtype=np.int32)
        ones = np.ones(length, np.float32)
        places, segments = np.arange(length, dtype=np.int32), np.ones(length, np.int32)
        logits_tv = random.permuted(np.broadcast_to(falling, (length, vocabulary)), axis=1)
        row = Row(tokens, tokens, places, segments, ones)
        lessons.append(Lesson(row=row, logits_tv=logits_tv))
    return lessons


def nearest_size(kind: type[Kept], lessons: list[Lesson], budget: float) -> Kept:
    """The sampler whose targets take the number of bytes a token that is nearest to `budget`."""
    sizes: dict[int, float] = {}

    def size(candidates: int) -> float:
        if candidates not in sizes:
            sampler = kind(candidates=candidates)
            found = [
                stored(lesson, sampler, drawn(lesson, sampler, number, draws=1))[1]
                for number, lesson in enumerate(lessons)
            ]
            sizes[candidates] = float(np.mean(found))
        return sizes[candidates]

    low, high, guess = 1, lessons[0].logits_tv.shape[1], budget / 2
    while high - low > 1:
        middle = min(max(round(guess), low + 1), high - 1)
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
        guess = middle * budget / size(middle)  # it is nearly proportional
    return kind(candidates=min((low, high), key=lambda one: abs(size(one) - budget)))


def measured(
    lessons: list[Lesson], sampler: Kept, *, draws: int, beyond: int
) -> dict[str, np.ndarray]:
    """Each figure by its name, one a row: see `_figures`, of what is drawn; then of the store.

    `bytes` a token, and as `stored ...` the same figures of what is read back from it.
    """
    rows = []
    for number, lesson in enumerate(lessons):
        found = drawn(lesson, sampler, number, draws=draws)
        back, size = stored(lesson, sampler, found)
        figures = _row_figures(lesson, found, beyond)
        of_store = _row_figures(lesson, back, beyond).items()
        figures |= {f"stored {name}": value for name, value in of_store}
        rows.append(figures | {"bytes": size})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def drawn(lesson: Lesson, sampler: Kept, number: int, *, draws: int) -> Drawn:
    """The targets of row `number`, whose random numbers are its own, so many times."""
    length = len(lesson.logits_tv)
    numbers = np.uint32(number * length * draws) + np.arange(draws * length, dtype=np.uint32)
    return Drawn(*map(np.asarray, _draw(lesson.logits_tv, numbers.reshape(draws, length), sampler)))


def stored(lesson: Lesson, sampler: Kept, found: Drawn) -> tuple[Drawn, float]:
    """(the same targets as a store gives them back, bytes a taught token that they take)."""
    length, vocabulary = lesson.logits_tv.shape
    coder, taught = codec(sampler, vocabulary=vocabulary, length=length), lesson.taught
    back, size = Drawn(*map(np.zeros_like, found)), 0
    for draw, (ids_tq, weights_tq) in enumerate(zip(*found, strict=True)):
        row = lesson.row._replace(candidates=ids_tq, probabilities=weights_tq)
        record = coder.encode(row)
        targets, size = coder.decode(record), size + len(record)
        back.candidates[draw, taught] = targets.candidates
        back.probabilities[draw, taught] = targets.probabilities
    return back, size / len(found.candidates) / taught.sum()


def mean(values: np.ndarray) -> Mean:
    """The mean over rows."""
    return Mean(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def ratio(values: np.ndarray, others: np.ndarray) -> Mean:
    """The ratio of two means over the same rows, its error to first order."""
    found = values.mean() / others.mean()
    spread = (values - found * others).std(ddof=1) / others.mean()
    return Mean(float(found), float(spread / len(values) ** 0.5))


@partial(jax.jit, static_argnames="sampler")
def _draw(logits_tv: jax.Array, numbers_mt: jax.Array, sampler: Kept):
    return jax.lax.map(
        lambda numbers_t: draw_from_logits(logits_tv, numbers_t, sampler), numbers_mt
    )


def _row_figures(lesson: Lesson, found: Drawn, beyond: int) -> dict[str, float]:
    """The means over the taught positions of a row."""
    by_position = [np.moveaxis(array, 1, 0) for array in found]
    arrays = *by_position, lesson.logits_tv, lesson.student_tv
    figures = _of_positions(arrays, lesson.table_vd, beyond).items()
    taught = lesson.taught
    return {name: float(np.asarray(values)[taught].mean()) for name, values in figures}


@partial(jax.jit, static_argnames="beyond")
def _of_positions(arrays: tuple, table_vd: jax.Array | None, beyond: int) -> dict[str, jax.Array]:
    """The figures of every position, arrays of shape [t]."""
    return jax.lax.map(lambda one: _figures(one, table_vd, beyond), arrays)


def _figures(arrays: tuple, table_vd: jax.Array | None, beyond: int) -> dict[str, jax.Array]:
    """Of one position: m draws of its target t against the teacher's p, and a student's q.

    `error` is E sum_v (t_v - p_v)^2, which is `bias` (squared) + `variance`, both estimated without
    bias. `top` and `beyond` are the biases of the likeliest token's target and of the sum of those
    after the first `beyond`. `loss bias` and `loss variance` are of the student's loss in nats,
    `gradient error` and its parts of the gradient with respect to the student's final states.
    """
    ids_mq, weights_mq, logits_v, student_v = arrays
    targets_mv = jnp.zeros((len(ids_mq), len(logits_v)))
    targets_mv = targets_mv.at[jnp.arange(len(ids_mq))[:, None], ids_mq].add(weights_mq)
    errors_mv = targets_mv - jax.nn.softmax(logits_v)
    mean_v = errors_mv.mean(axis=0)
    last = jax.lax.top_k(logits_v, beyond)[0][-1]
    found = {
        "distinct": (targets_mv > 0).sum(axis=1).mean(),
        **_split("", errors_mv),
        "top": mean_v[jnp.argmax(logits_v)],
        "beyond": jnp.where(logits_v < last, mean_v, 0.0).sum(),
    }
    if student_v is None or table_vd is None:
        return found
    logs_v = jax.nn.log_softmax(student_v)
    losses_m = -errors_mv @ logs_v
    found |= {"loss bias": losses_m.mean(), "loss variance": losses_m.var(ddof=1)}
    excess_m1 = errors_mv.sum(axis=1, keepdims=True)  # of the weights' sum over 1
    by_logits_mv = excess_m1 * jnp.exp(logs_v) - errors_mv
    return found | _split("gradient ", by_logits_mv @ table_vd)


def _split(name: str, errors: jax.Array) -> dict[str, jax.Array]:
    """The mean squared length of vectors, one a draw, and its two parts."""
    draws, mean_error = len(errors), errors.mean(axis=0)
    variance = ((errors - mean_error) ** 2).sum() / (draws - 1)
    bias = (mean_error**2).sum() - variance / draws
    return {f"{name}error": bias + variance, f"{name}bias": bias, f"{name}variance": variance}
