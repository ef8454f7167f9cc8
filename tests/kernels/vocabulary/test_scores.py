"""The loss of each token apart against the softmax of whole logits, on any split of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_train.kernels.vocabulary.scores import token_scores
from gemma_train.kernels.vocabulary.terms import LossTerms
from tests.kernels.vocabulary.autodiff import LENGTH, ROWS, in_place, states_and_table
from tests.kernels.vocabulary.test_loss import SPLITS, VOCABULARY
from tests.tolerances import assert_close


def scores(width: int, terms: LossTerms):
    """(what it finds, what whole logits say); every third target is the likeliest token."""
    random = np.random.default_rng(width)
    states, table = states_and_table(random, width, VOCABULARY, largest=6.0)
    logits_btv = np.asarray(states) @ np.asarray(table).T
    if terms.soft_cap is not None:
        logits_btv = terms.soft_cap * np.tanh(logits_btv / terms.soft_cap)
    targets_bt = random.integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
    likeliest_bt = logits_btv.argmax(-1)
    targets_bt[:, ::3] = likeliest_bt[:, ::3]
    log_shares_btv = jax.nn.log_softmax(logits_btv)
    expected = -np.take_along_axis(np.asarray(log_shares_btv), targets_bt[..., None], -1)[..., 0]
    states, table, targets, _ = in_place((states, table, targets_bt, np.ones((ROWS, LENGTH))))
    found = jax.jit(lambda *x: token_scores(*x, terms))(states, table, jnp.asarray(targets))
    return found, (expected, targets_bt == likeliest_bt)


@pytest.mark.parametrize("chunk", [7, 32, 1000])
@pytest.mark.parametrize("soft_cap", [None, 4.0])
def test_they_are_those_of_the_whole_logits(chunk, soft_cap, mesh_of):
    with mesh_of():
        found, expected = scores(12, LossTerms(chunk=chunk, soft_cap=soft_cap))
    assert_close(found[0], expected[0], "fp32")
    assert (np.asarray(found[1]) == expected[1]).all() and not expected[1].all()


@pytest.mark.parametrize(("mesh", "width", "rows", "columns"), SPLITS)
def test_split_over_a_mesh_they_are_the_same(mesh, width, rows, columns, mesh_of):
    with mesh_of(*mesh):
        found, expected = scores(width, LossTerms(chunk=7))
        assert_close(found[0], expected[0], "fp32")
        assert (np.asarray(found[1]) == expected[1]).all()


def test_the_peak_is_taken_over_devices_once(mesh_of):
    terms, random = LossTerms(chunk=7), np.random.default_rng(0)
    with mesh_of(1, 1, 4):
        states, table = states_and_table(random, 7, VOCABULARY, largest=6.0)
        states, table, targets, _ = in_place(
            (states, table, np.zeros((ROWS, LENGTH), np.int32), np.ones((ROWS, LENGTH)))
        )
        program = str(jax.make_jaxpr(lambda *x: token_scores(*x, terms))(states, table, targets))
    assert program.count("= pmax") == 1
