from dataclasses import replace

import numpy as np
import pytest

from gemma_train.conversion.fingerprint import parameters_sha256
from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import Tensor, Weights
from gemma_train.model import GemmaConfig

CONFIG = GemmaConfig(
    vocabulary=16,
    width=8,
    layers=1,
    query_heads=1,
    key_value_heads=1,
    head_dimension=8,
    hidden=8,
    context=8,
    pattern=("global",),
)


def weights(dtype="float32", **changes) -> Weights:
    arrays = {
        "embedding/table": np.arange(128.0).reshape(16, 8),
        "layers/0/attention/query": np.ones((8, 1, 8)),
        PADDING: np.zeros((2, 8)),
    }
    arrays.update(changes)
    tensors = {
        name: Tensor(array.shape, np.dtype(dtype), lambda array=array: array.astype(dtype))
        for name, array in arrays.items()
    }
    return Weights(source="somewhere", format="hf", config=CONFIG, tensors=tensors)


def test_equal_parameters_have_one_sum_in_any_order_and_format():
    one = weights()
    turned = dict(reversed(one.tensors.items()))
    other = replace(one, source="elsewhere", format="run", step=3, tensors=turned)
    assert parameters_sha256(one) == parameters_sha256(other)
    padded = weights(**{PADDING: np.ones((9, 8))})
    assert parameters_sha256(padded) == parameters_sha256(one)


@pytest.mark.parametrize(
    "other",
    [
        weights("float16"),
        weights(**{"embedding/table": np.arange(128.0).reshape(8, 16)}),
        weights(**{"embedding/table": np.arange(128.0)[::-1].reshape(16, 8)}),
        weights(**{"layers/0/attention/key": np.ones((8, 1, 8))}),
    ],
    ids=["dtype", "shape", "values", "name"],
)
def test_another_parameter_has_another_sum(other):
    assert parameters_sha256(other) != parameters_sha256(weights())


def test_bfloat16_is_read_as_it_is():
    assert len(parameters_sha256(weights("bfloat16"))) == 64
