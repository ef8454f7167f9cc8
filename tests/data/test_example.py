import dataclasses

import jax
import numpy as np

from gemma_train.data.example import Batch, Row, padding, stack


def test_stacked_rows_keep_their_order_and_fields():
    rows = [Row(*(np.full(4, 10 * row + field) for field in range(5))) for row in range(3)]
    batch = stack(rows)
    assert batch.tokens_bt[:, 0].tolist() == [0, 10, 20]
    assert batch.weights_bt[:, 0].tolist() == [4, 14, 24]
    assert batch.targets_bt.shape == (3, 4)


def test_rows_and_batches_name_the_same_fields():
    names = [field.name for field in dataclasses.fields(Batch)]
    assert names == [f"{name}_bt" for name in Row._fields]


def test_padding_weighs_nothing():
    batch = stack([padding(4)])
    assert batch.weights_bt.sum() == 0
    assert [leaf.dtype.name for leaf in jax.tree.leaves(batch)] == ["int32"] * 4 + ["float32"]
