import numpy as np
import pytest

from gemma_train.data.unigram import unigram_entropy
from tests.data.conftest import documents_of


def test_unigram_entropy_is_that_of_the_held_out_targets(config):
    targets = [each[1:] for folder in config.held_out for each in documents_of(folder)]
    shares = np.unique(np.concatenate(targets), return_counts=True)[1] / len(
        np.concatenate(targets)
    )
    assert unigram_entropy(config) == pytest.approx(-(shares * np.log(shares)).sum())
