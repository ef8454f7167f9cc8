"""Losses of rows against those that a model's logits give, at any length and on any mesh."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gemma_train.evaluation import scores
from gemma_train.evaluation.scores import make_scorer
from tests.test_sampling import CONTEXT, GEMMA3, lively
from tests.tolerances import assert_close

LENGTH = 2 * CONTEXT  # beyond what the model's config says


def rows(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    return random.integers(0, GEMMA3.vocabulary, (number, LENGTH + 1), dtype=np.int32)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 2), (1, 4, 1)])
def test_they_are_those_of_the_models_logits(mesh, mesh_of):
    ids_bt = rows(7)
    with mesh_of(*mesh):
        model = lively(GEMMA3)
        score = make_scorer(model, jax.sharding.get_mesh(), chunk=32, longest=LENGTH)
        found = score(ids_bt)
    with mesh_of():
        logits_btv = lively(GEMMA3).logits(ids_bt[:, :-1])
        log_shares_btv = np.asarray(jax.nn.log_softmax(logits_btv))
    expected_bt = -np.take_along_axis(log_shares_btv, ids_bt[:, 1:, None], -1)[..., 0]
    assert_close(found.loss_bt, expected_bt, "deep fp32")
    assert (found.likeliest_bt == (log_shares_btv.argmax(-1) == ids_bt[:, 1:])).all()


def test_each_length_is_compiled_once_for_any_number_of_rows(mesh_of):
    with mesh_of():
        model = lively(replace(GEMMA3, hidden=24))
        score = make_scorer(model, jax.sharding.get_mesh(), chunk=32, longest=LENGTH)
        before = scores._scores._cache_size()
        for count in (1, 3, 6):
            for length in (LENGTH // 2, LENGTH):
                score(rows(count)[:, : length + 1])
        assert scores._scores._cache_size() - before == 2
