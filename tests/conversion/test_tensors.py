"""Tensors that are read late, once, and a few at a time."""

import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import (
    BFLOAT16,
    Tensor,
    Weights,
    parcels,
    slices,
    stacked,
    unstacked,
)
from gemma_train.errors import UserError
from gemma_train.model import sizes

FLOAT32 = np.dtype(np.float32)
# Two repetitions of six layers, and two layers more.
CONFIG = replace(sizes.GEMMA3_270M, layers=14)


class Stored:
    """An array that counts its reads and knows whether what it gave is still held."""

    def __init__(self, array: np.ndarray):
        self.reads, self.array, self.given = 0, array, lambda: None
        self.tensor = Tensor(array.shape, array.dtype, self.read)

    def read(self) -> np.ndarray:
        self.reads += 1
        copy = self.array.copy()
        self.given = weakref.ref(copy)
        return copy


def numbered(count: int, *shape: int) -> list[Tensor]:
    """Tensors filled with their number."""
    return [Tensor(shape, FLOAT32, lambda i=i: np.full(shape, i, FLOAT32)) for i in range(count)]


def test_size_and_bytes_are_those_of_the_array():
    assert (Tensor((3, 4), BFLOAT16, list).size, Tensor((3, 4), BFLOAT16, list).bytes) == (12, 24)
    assert Tensor((2**17, 2**17), FLOAT32, list).bytes == 2**36


def test_a_cast_is_made_when_it_is_read_and_only_where_it_changes_something():
    stored = Stored(np.float32([1, 1.00390625, 3.0e38]))
    assert stored.tensor.cast(FLOAT32) is stored.tensor
    cast = stored.tensor.cast(BFLOAT16)
    assert (stored.reads, cast.dtype) == (0, BFLOAT16)
    assert cast.read().dtype == BFLOAT16
    assert cast.read().astype(float).tolist()[:2] == [1.0, 1.0]  # to the even neighbour


def test_slices_read_the_leaf_once_and_then_let_go_of_it():
    stored = Stored(np.arange(24.0).reshape(4, 3, 2))
    found = []
    for number, one in enumerate(slices(stored.tensor)):
        assert stored.reads == min(number, 1)
        found.append(one.read().tolist())
        assert (stored.given() is None) == (number == 3)
    assert (stored.reads, found) == (1, stored.array.tolist())


def test_slices_may_be_read_again_and_out_of_turn():
    stored = Stored(np.arange(8.0).reshape(4, 2))
    parts = list(slices(stored.tensor))
    for index in (3, 1, 1, 0, 3, 2):
        assert parts[index].read().tolist() == stored.array[index].tolist()


def test_layers_are_stacked_by_their_place_in_the_pattern():
    ours = {f"layers/{i}/norm": tensor for i, tensor in enumerate(numbered(14, 3))}
    ours["final_norm"] = numbered(1, 3)[0]
    leaves = stacked(ours, CONFIG)
    read = {name: leaf.read()[..., 0].tolist() for name, leaf in leaves.items()}
    expected = {f"pattern/{place}/norm": [place, place + 6] for place in range(6)}
    expected |= {"remainder/0/norm": 12, "remainder/1/norm": 13, "final_norm": 0}
    assert read == expected
    assert all(leaf.shape == leaf.read().shape for leaf in leaves.values())


def test_unstacking_gives_the_layers_their_numbers_back():
    ours = {f"layers/{i}/norm": tensor for i, tensor in enumerate(numbered(14, 3))}
    ours |= {PADDING: numbered(1, 2)[0], "embedding/table": numbered(1, 2)[0]}
    back = unstacked(stacked(ours, CONFIG), CONFIG)
    assert {name: tensor.read().tolist() for name, tensor in back.items()} == {
        name: tensor.read().tolist() for name, tensor in ours.items()
    }


def test_parcels_stay_below_their_size_but_for_a_tensor_that_is_larger_alone():
    sizes_of = {"a": 4, "b": 4, "c": 4, "d": 12, "e": 1, "f": 9}
    tensors = {name: Tensor((size,), np.dtype(np.uint8), list) for name, size in sizes_of.items()}
    found = [list(parcel) for parcel in parcels(tensors, 10)]
    assert found == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert list(parcels({}, 10)) == []


def test_a_mixture_of_dtypes_is_named_and_a_cast_mends_it():
    first, second, third = numbered(3, 2)
    tensors = {"a": first, "b": second.cast(BFLOAT16), "c": third}
    weights = Weights(source="folder", format="hf", config=CONFIG, tensors=tensors)
    with pytest.raises(
        UserError, match=r"^folder mixes dtypes: b is bfloat16, a is float32; .*--d"
    ):
        _ = weights.dtype
    assert weights.cast(FLOAT32).dtype == FLOAT32
    assert Counter(t.dtype for t in weights.cast(BFLOAT16).tensors.values()) == {BFLOAT16: 3}


def test_padding_is_no_parameter():
    table, padding = numbered(2, 2)
    tensors = {"embedding/table": table, PADDING: padding}
    weights = Weights(source="folder", format="hf", config=CONFIG, tensors=tensors)
    assert weights.parameters == {"embedding/table": table}
