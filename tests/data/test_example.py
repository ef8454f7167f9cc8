import dataclasses

import jax

from gemma_train.data.example import Batch, Row, padding


def test_a_batch_is_filled_row_by_row():
    batch = padding(3, 4)
    batch.row(1).tokens[:2] = 7
    batch.row(2).weights[3] = 1
    assert batch.tokens_bt.tolist() == [[0] * 4, [7, 7, 0, 0], [0] * 4]
    assert batch.weights_bt.sum() == batch.weights_bt[2, 3] == 1


def test_rows_and_batches_name_the_same_fields():
    names = [field.name for field in dataclasses.fields(Batch)]
    assert [name.rpartition("_")[0] for name in names] == list(Row._fields)
    assert [name for name in names if name.endswith("_btq")] == names[5:]


def test_a_batch_is_a_pytree_of_four_integer_arrays_and_the_weights():
    leaves = jax.tree.leaves(padding(2, 4))
    assert [leaf.dtype.name for leaf in leaves] == ["int32"] * 4 + ["float32"]
    taught = jax.tree.leaves(padding(2, 4, candidates=3))[5:]
    assert [(leaf.dtype.name, leaf.shape) for leaf in taught] == [
        ("int32", (2, 4, 3)),
        ("float32", (2, 4, 3)),
    ]
