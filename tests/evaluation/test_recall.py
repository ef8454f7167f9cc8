"""Needles and key-values: where they stand, that a row has its answer, and what is refused."""

import numpy as np
import pytest

from gemma_train.errors import UserError
from gemma_train.evaluation.recall import DEPTHS, key_values, needles


def test_the_needle_stands_at_its_depth_and_the_row_ends_with_its_question(tokenizer, text_bt):
    found = needles(tokenizer, text_bt, 256, rows=10, seed=3)
    assert found.ids_bt.shape == (10, 257)
    assert found.depth_b.tolist() == [*DEPTHS] * 2
    for ids, answer, depth in zip(
        found.ids_bt.tolist(), found.answer_b, found.depth_b, strict=True
    ):
        assert ids[0] == tokenizer.bos
        said = tokenizer.decode(ids[-answer:])
        assert len(said) == 5 and said.isdigit()
        before, sentence, _ = tokenizer.decode(ids).partition("\nThe magic number of ")
        assert tokenizer.decode(ids).count(said) == 2  # in the needle, and as the answer
        end = len(tokenizer.encode(sentence)) + 1
        place, last = len(tokenizer.encode(before)), 256 - 2 * end
        assert place == pytest.approx(depth * last, abs=0.15 * 256)
        head, _, question = tokenizer.decode(ids[:-answer]).rpartition("\nThe magic number of ")
        assert f"The magic number of {question}{said}\n" in head


def test_a_key_stands_in_one_line_at_its_depth_and_its_value_is_the_answer(tokenizer):
    found = key_values(tokenizer, 256, rows=10, seed=3)
    assert found.ids_bt.shape == (10, 257)
    (newline,) = tokenizer.encode("\n")
    for ids, depth in zip(found.ids_bt, found.depth_b, strict=True):
        begin, *_, key, value = ids.tolist()
        assert begin == tokenizer.bos
        lines = ids[-2 - 84 * 3 : -2].reshape(84, 3)
        assert (lines[:, 2] == newline).all()
        assert not set(lines[:, 0]) & set(lines[:, 1])
        assert len(set(map(tuple, lines))) == len(set(lines[:, 0]))  # a key has one value
        assert np.flatnonzero(lines[:, 0] == key).tolist() == [round(depth * 83)]
        assert lines[round(depth * 83), 1] == value


def test_another_seed_asks_other_questions(tokenizer, text_bt):
    for make in (
        lambda seed: needles(tokenizer, text_bt, 256, rows=2, seed=seed),
        lambda seed: key_values(tokenizer, 256, rows=2, seed=seed),
    ):
        assert (make(1).ids_bt == make(1).ids_bt).all()
        assert (make(1).ids_bt != make(2).ids_bt).any()


def test_a_row_too_short_for_its_question_is_a_line(tokenizer, text_bt):
    with pytest.raises(UserError, match="lengths has 16: a needle"):
        needles(tokenizer, text_bt, 16, rows=2, seed=0)
    with pytest.raises(UserError, match="lengths has 7"):
        key_values(tokenizer, 7, rows=2, seed=0)
