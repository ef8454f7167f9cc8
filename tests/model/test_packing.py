"""Ids, positions and segments of a call by itself: what is counted, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_train.errors import UserError
from gemma_train.model.config import GemmaConfig
from gemma_train.model.packing import checked, packing

CONFIG = GemmaConfig(
    vocabulary=9,
    width=4,
    layers=1,
    query_heads=1,
    key_value_heads=1,
    head_dimension=4,
    hidden=4,
    context=8,
)
TOKENS = [[1, 2, 3, 4, 0], [5, 6, 7, 8, 1]]


def test_positions_begin_anew_in_every_segment():
    segments = jnp.array([[1, 1, 2, 2, 0], [3, 3, 3, 1, 1]])
    tokens, positions, found = packing(jnp.array(TOKENS), None, segments)
    np.testing.assert_array_equal(positions, [[0, 1, 0, 1, 0], [0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(found, segments)
    assert {x.dtype.name for x in (tokens, positions, found)} == {"int32"}


def test_a_row_is_one_segment_unless_told():
    _, positions, segments = packing(jnp.array(TOKENS), None, None)
    np.testing.assert_array_equal(positions, [range(5)] * 2)
    np.testing.assert_array_equal(segments, np.ones((2, 5)))


@pytest.mark.parametrize("make", [list, np.array, jnp.array])
def test_lists_and_arrays_are_taken(make):
    tokens, positions, segments = checked(CONFIG, make(TOKENS), None, make(TOKENS))
    np.testing.assert_array_equal(tokens, TOKENS)
    assert positions is None
    np.testing.assert_array_equal(segments, TOKENS)


def test_ids_are_looked_at_within_a_trace_only_where_they_are_known():
    constant = jnp.array(TOKENS)
    jax.jit(lambda tokens: checked(CONFIG, tokens + 100, None, None)[0])(constant)
    with pytest.raises(UserError, match="tokens go from 100 to 108"):
        jax.jit(lambda: checked(CONFIG, np.array(TOKENS) + 100, None, None)[0])()
    jax.jit(lambda: checked(CONFIG, constant, None, None)[0])()


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        (([[1, 9]], None, None), "tokens go from 1 to 9, this model's from 0 to 8"),
        (([[1, -1]], None, None), "tokens go from -1 to 1"),
        (([[1.5]], None, None), "tokens are float64 (1, 1): give integers [batch, time]"),
        (([1, 2], None, None), "tokens are int64 (2,)"),
        (([[1, 2]], [[0]], None), "positions have shape (1, 1), tokens (1, 2)"),
        (([[1, 2]], None, [[1, 1, 1]]), "segment ids have shape (1, 3), tokens (1, 2)"),
    ],
)
def test_what_cannot_be_is_refused(inputs, line):
    with pytest.raises(UserError) as refused:
        checked(CONFIG, *inputs)
    assert line in str(refused.value)
