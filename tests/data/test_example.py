import dataclasses

import jax

from gemma_train.data.example import LETTERS, Batch, Layout, Row


def test_a_batch_is_filled_row_by_row():
    batch = Layout(length=4).padding(3)
    batch.row(1).tokens[:2] = 7
    batch.row(2).weights[3] = 1
    assert batch.tokens_bt.tolist() == [[0] * 4, [7, 7, 0, 0], [0] * 4]
    assert batch.weights_bt.sum() == batch.weights_bt[2, 3] == 1


def test_rows_and_batches_name_the_same_fields():
    names = [field.name for field in dataclasses.fields(Batch)]
    assert [name.rpartition("_")[0] for name in names] == list(Row._fields)
    letters = [name.rpartition("_")[2] for name in names]
    assert letters == ["bt"] * 5 + ["btq"] * 2 + ["bt", "bipe"]


def test_letters_tell_the_axes_of_every_field():
    batch = Layout(length=4, candidates=3, images=(2, 5, 6)).padding(2)
    for name, array in vars(batch).items():
        assert LETTERS[array.ndim] == name.rpartition("_")[2]


def test_a_batch_is_a_pytree_of_four_integer_arrays_and_the_weights():
    leaves = jax.tree.leaves(Layout(length=4).padding(2))
    assert [leaf.dtype.name for leaf in leaves] == ["int32"] * 4 + ["float32"]
    taught = jax.tree.leaves(Layout(length=4, candidates=3).padding(2))[5:]
    assert [(leaf.dtype.name, leaf.shape) for leaf in taught] == [
        ("int32", (2, 4, 3)),
        ("float32", (2, 4, 3)),
    ]
    seen = jax.tree.leaves(Layout(length=4, images=(2, 5, 6)).padding(2))[5:]
    assert [(leaf.dtype.name, leaf.shape) for leaf in seen] == [
        ("int32", (2, 4)),
        ("bfloat16", (2, 2, 5, 6)),
    ]
    assert (seen[0] == -1).all()
