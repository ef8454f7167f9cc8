"""The entropy of the held-out text's unigram distribution, to hold losses against."""

import numpy as np

from gemma_train.data.config import DataConfig
from gemma_train.data.pipeline import held_out_batches


def unigram_entropy(config: DataConfig, *, maximum_rows: int | None = None) -> float:
    """Nats a token of the held-out targets' own unigram distribution.

    The loss of a model that knows only how often each token occurs; over the same rows as
    `held_out_batches` with this `maximum_rows`, targets of weight 0 left out.
    """
    counts = np.zeros(0, np.int64)
    with held_out_batches(config, batch_rows=8, maximum_rows=maximum_rows) as stream:
        for batch in stream:
            found = np.bincount(batch.targets_bt[batch.weights_bt > 0], minlength=counts.size)
            found[: counts.size] += counts
            counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
