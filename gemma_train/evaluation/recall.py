"""Questions whose answer stands somewhere in a long row: a needle in a haystack, and key-values.

After RULER (arXiv 2404.06654, section 3), made from a seed with the words of a tokenizer's own
vocabulary. A needle is a sentence with a number, in held-out text; key-values are lines of two
words and nothing else, all alike, so that only the right key finds the answer. A row ends with the
question and its answer: a model that is asked for the likeliest token each time says the whole
answer if and only if each of its tokens is the likeliest after those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemma_train.errors import require
from gemma_train.tokenizer.tokenizer import Tokenizer

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the beginning of the row to the question
_LETTERS = 3  # of the shortest word
_LINE = 3  # tokens: key, value, newline


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Rows that end with an answer, and how deep in each what is asked for stands."""

    ids_bt: np.ndarray  # int32 [rows, length + 1]
    answer_b: np.ndarray  # tokens of the answer, the last of the row
    depth_b: np.ndarray  # one of `DEPTHS`


def needles(
    tokenizer: Tokenizer, haystack_bt: np.ndarray, length: int, *, rows: int, seed: int
) -> Questions:
    """A sentence with a number of five digits, hidden in the first tokens of rows of text.

    Raises `UserError` where `length` has no room for it and the question.
    """
    draw, words = np.random.default_rng(seed), _words(tokenizer)
    newline, made, answers = tokenizer.encode("\n"), [], []
    for row, depth in enumerate(_depths(rows)):
        word = tokenizer.decode([int(draw.choice(words))]).strip()
        asked = tokenizer.encode(f"The magic number of {word} is ")
        answer = tokenizer.encode("".join(map(str, draw.integers(0, 10, 5))))
        needle = [*newline, *asked, *answer, *newline]
        end = [*newline, *asked, *answer]
        room = length - len(needle) - len(end)  # and <bos> ahead
        require(
            room >= 0,
            f"lengths has {length}: a needle and its question take {length - room} tokens, "
            "choose a longer one",
        )
        text = haystack_bt[row % len(haystack_bt), :room].tolist()
        place = round(depth * room)
        made.append([tokenizer.bos, *text[:place], *needle, *text[place:], *end])
        answers.append(len(answer))
    return _questions(made, answers)


def key_values(tokenizer: Tokenizer, length: int, *, rows: int, seed: int) -> Questions:
    """Lines ' key value', and at the end one key again; its value is the answer.

    That key stands in one line; where the tokenizer has fewer words than the row has lines, others
    are repeated. Raises `UserError` for a row without two lines.
    """
    draw, words = np.random.default_rng(seed), _words(tokenizer)
    lines = (length - 2) // _LINE  # beside <bos>, the key asked for and its value
    require(lines >= 2, f"lengths has {length}: choose at least {2 * _LINE + 2}")
    (newline,) = tokenizer.encode("\n")
    fill = [newline] * (length - 2 - lines * _LINE)
    made = []
    for depth in _depths(rows):
        keys, values = np.array_split(draw.permutation(words), 2)
        keys, own = keys[:lines], draw.choice(values, len(keys[:lines]))
        order = np.insert(1 + np.arange(lines - 1) % (len(keys) - 1), round(depth * (lines - 1)), 0)
        ends = np.full(lines, newline)
        table = np.stack([keys[order], own[order], ends], axis=1)
        made.append([tokenizer.bos, *fill, *table.ravel().tolist(), int(keys[0]), int(own[0])])
    return _questions(made, [1] * rows)


def _depths(rows: int) -> list[float]:
    return [DEPTHS[row % len(DEPTHS)] for row in range(rows)]


def _questions(made: Sequence[Sequence[int]], answers: Sequence[int]) -> Questions:
    return Questions(
        ids_bt=np.array(made, np.int32),
        answer_b=np.array(answers),
        depth_b=np.array(_depths(len(made))),
    )


def _words(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of pieces that are whole words with the space ahead of them."""
    words = [
        number
        for number, piece in enumerate(tokenizer.pieces())
        if piece.kind == "NORMAL"
        and piece.text.startswith("\u2581")
        and len(piece.text) > _LETTERS
        and piece.text[1:].isalpha()
    ]
    require(
        len(words) >= 8,
        f"{tokenizer.name!r} has {len(words)} words of {_LETTERS} letters and more: key-values are "
        "made of them, use a larger tokenizer",
    )
    return np.array(words)
