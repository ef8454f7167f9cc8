"""What is asked over growing context: the same tokens each time, answers that are in the row."""

from contextlib import nullcontext

import numpy as np
import pytest

from gemma_train.errors import UserError
from gemma_train.evaluation.over_context import OverContext, edges, over_context
from gemma_train.evaluation.recall import DEPTHS
from gemma_train.evaluation.scores import Scores

ASKED = OverContext(lengths=(256, 128), window=32, rows=10, seed=3)


def copying(ids_bt: np.ndarray) -> Scores:
    """A model that goes on as the row did after the longest earlier stretch like its end."""
    said_bt = np.stack([[_next(ids[: stop + 1]) for stop in range(len(ids) - 1)] for ids in ids_bt])
    likeliest_bt = said_bt == ids_bt[:, 1:]
    return Scores(np.where(likeliest_bt, 0.0, 9.0).astype(np.float32), likeliest_bt)


def _next(ids: np.ndarray) -> int:
    best, said = 0, -1
    for end in np.flatnonzero(ids[:-1] == ids[-1]):
        same = 1
        while same <= end and ids[end - same] == ids[-1 - same]:
            same += 1
        if same >= best:
            best, said = same, int(ids[end + 1])
    return said


def asked(score, text_bt, tokenizer, asked=ASKED):
    return over_context(score, text_bt, tokenizer, asked, lambda what: nullcontext())


def test_a_model_that_copies_answers_all_and_one_that_does_not_none(tokenizer, text_bt):
    for one in asked(copying, text_bt, tokenizer).at_length:
        assert one.needle.right.share == one.key_value.right.share == 1.0
        assert one.needle.loss.mean == one.key_value.loss.mean == 0.0
        assert one.needle_by_depth.keys() == {*DEPTHS}

    def silent(ids_bt):
        shape = ids_bt[:, 1:].shape
        likeliest_bt = np.ones(shape, bool)
        likeliest_bt[:, -1] = False  # all but the last token of the answer is not the answer
        return Scores(np.full(shape, 2.0, np.float32), likeliest_bt)

    for one in asked(silent, text_bt, tokenizer).at_length:
        assert one.needle.right.share == one.key_value.right.share == 0.0
        assert one.needle.loss.mean == one.key_value.loss.mean == 2.0


def test_the_same_final_tokens_are_scored_with_ever_more_between_bos_and_them(tokenizer, text_bt):
    seen = []

    def score(ids_bt):
        seen.append(ids_bt)
        return Scores(ids_bt[:, 1:].astype(np.float32), np.zeros(ids_bt[:, 1:].shape, bool))

    found = asked(score, text_bt, tokenizer)
    texts = seen[::3]  # then needles and key-values
    assert [one.length for one in found.at_length] == [128, 256]
    for ids_bt in seen:
        assert (ids_bt[:, 0] == tokenizer.bos).all()
    for ids_bt, length in zip(texts, (128, 256), strict=True):
        assert (ids_bt[:, 1:] == text_bt[:, -length:]).all()
    rows_b = text_bt[:, -32:].mean(axis=1)
    for one in found.at_length:
        assert one.change.mean == one.change.deviation == 0.0
        assert one.final_window.mean == pytest.approx(rows_b.mean())
        assert one.final_window.deviation == pytest.approx(rows_b.std(ddof=1))
    last = found.by_position[-1]
    assert last.stop == 256
    assert last.loss.mean == pytest.approx(text_bt[:, last.first :].mean())


def test_bins_cover_every_position_once():
    assert edges(100) == [0, 16, 23, 32, 45, 64, 91, 100]
    assert edges(10) == [0, 10]
    assert edges(16) == [0, 16]
    assert edges(131_072)[-3:] == [65_536, 92_682, 131_072]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"lengths": ()}, "lengths is empty"),
        ({"window": 129}, "window is 129: .* choose it from 1 to 128"),
        ({"rows": 1}, "rows is 1"),
    ],
)
def test_what_cannot_be_asked_is_a_line(wrong, line):
    with pytest.raises(UserError, match=line):
        OverContext(**{"lengths": (128,), "window": 8, "rows": 4, "seed": 0} | wrong)
