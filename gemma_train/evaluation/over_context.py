"""What a model makes of a long context: losses by position and over growing context, and recall.

The loss of one and the same final window of tokens, with ever more of the text ahead of it
visible, is figure 7 of the Gemma 3 report (arXiv 2503.19786): a model that uses its context has
less of it with more. Rows begin with <bos> at every length: if only some had it, a model that
leans on it would tell that, and not what the context is good for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gemma_train.errors import require
from gemma_train.evaluation.recall import DEPTHS, Questions, key_values, needles
from gemma_train.evaluation.scores import Scorer
from gemma_train.metrics.interval import Mean, Share
from gemma_train.tokenizer.tokenizer import Tokenizer

_FIRST_BIN = 16  # tokens; then two bins each time the position doubles
Telling = Callable[[str], AbstractContextManager]


@dataclass(frozen=True, kw_only=True)
class OverContext:
    """What is asked of a model."""

    lengths: tuple[int, ...]  # tokens of context
    window: int  # tokens at the end of each row whose loss is compared
    rows: int  # of text, of needles and of key-values, at each length
    seed: int  # of needles and key-values

    def __post_init__(self) -> None:
        require(bool(self.lengths), "lengths is empty: name some, such as --lengths 512 1024")
        require(
            min(self.lengths) >= self.window >= 1,
            f"window is {self.window}: all of it must be in sight of the shortest of lengths, "
            f"choose it from 1 to {min(self.lengths)}",
        )
        require(self.rows >= 2, f"rows is {self.rows}: an interval needs at least 2")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be from 0 to 2**32 - 1")


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Positions from `first` to before `stop`, and the loss of the tokens that follow there."""

    first: int
    stop: int
    loss: Mean


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Questions answered: word for word by the likeliest tokens, and the loss of the answer's."""

    right: Share
    loss: Mean


@dataclass(frozen=True, kw_only=True)
class AtLength:
    """With so many tokens of context."""

    length: int
    final_window: Mean
    change: Mean  # of that loss from the shortest length's, row by row
    needle: Recall
    needle_by_depth: dict[float, Recall]
    key_value: Recall


@dataclass(frozen=True, kw_only=True)
class Found:
    """Losses are in nats a token; intervals are over rows."""

    by_position: tuple[Bin, ...]  # up to the longest length
    at_length: tuple[AtLength, ...]


def over_context(
    score: Scorer,
    text_bt: np.ndarray,
    tokenizer: Tokenizer,
    asked: OverContext,
    telling: Telling,
) -> Found:
    """Score rows of text and questions at every length.

    `text_bt` has ids behind a <bos>, [rows, longest length]; a row of a length is <bos> and the
    last so many of them, the very last as a target alone. `telling` is entered for each piece of
    work, with what it is.
    """
    at_length, by_position, of_shortest_b = [], (), None
    begin_bt = np.full((len(text_bt), 1), tokenizer.bos, text_bt.dtype)
    for length in sorted(set(asked.lengths)):
        with telling(f"text, {length:,} tokens in sight"):
            loss_bt = score(np.hstack([begin_bt, text_bt[:, -length:]])).loss_bt
        if length == max(asked.lengths):
            by_position = _by_position(loss_bt)
        window_b = loss_bt[:, -asked.window :].mean(axis=1)
        of_shortest_b = window_b if of_shortest_b is None else of_shortest_b
        needle = needles(tokenizer, text_bt, length, rows=asked.rows, seed=asked.seed)
        lines = key_values(tokenizer, length, rows=asked.rows, seed=asked.seed)
        with telling(f"needles, {length:,} tokens"):
            right_b, nats_b = _answers(score, needle)
        with telling(f"key-values, {length:,} tokens"):
            of_lines = _recall(*_answers(score, lines))
        at_length.append(
            AtLength(
                length=length,
                final_window=_mean(window_b),
                change=_mean(window_b - of_shortest_b),
                needle=_recall(right_b, nats_b),
                needle_by_depth={
                    depth: _recall(right_b[here], nats_b[here])
                    for depth in DEPTHS
                    if (here := needle.depth_b == depth).any()
                },
                key_value=of_lines,
            )
        )
    return Found(by_position=by_position, at_length=tuple(at_length))


def edges(length: int) -> list[int]:
    """Where bins of positions begin, and `length`: 0, 16, 23, 32, 45, 64, ..."""
    halves = 2 * int(np.log2(max(length / _FIRST_BIN, 1.0))) + 2
    inner = {round(_FIRST_BIN * 2 ** (half / 2)) for half in range(halves)}
    return sorted({0, length, *(edge for edge in inner if edge < length)})


def _by_position(loss_bt: np.ndarray) -> tuple[Bin, ...]:
    return tuple(
        Bin(first=first, stop=stop, loss=_mean(loss_bt[:, first:stop].mean(axis=1)))
        for first, stop in pairwise(edges(loss_bt.shape[1]))
    )


def _answers(score: Scorer, questions: Questions) -> tuple[np.ndarray, np.ndarray]:
    """([b] whether the whole answer is right, [b] nats a token of it)."""
    scores = score(questions.ids_bt)
    length = scores.loss_bt.shape[1]
    is_answer_bt = np.arange(length) >= length - questions.answer_b[:, None]
    right_b = (scores.likeliest_bt | ~is_answer_bt).all(axis=1)
    return right_b, (scores.loss_bt * is_answer_bt).sum(axis=1) / questions.answer_b


def _recall(right_b: np.ndarray, nats_b: np.ndarray) -> Recall:
    return Recall(right=Share.of(right_b.tolist()), loss=_mean(nats_b))


def _mean(values_b: np.ndarray) -> Mean:
    return Mean.of(values_b.tolist())
