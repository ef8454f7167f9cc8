"""The contraction of activations with a weight against the einsum that it stands for."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.kernels.contraction import contract
from gemma_train.zero3 import gather, share, split
from tests.tolerances import assert_close

SIZES = {"b": 8, "t": 12, "d": 16, "f": 24, "n": 4, "k": 2, "h": 6}
LETTERS = ["btd,df->btf", "btf,fd->btd", "btd,dnh->btnh", "btd,dkh->btkh", "btnh,nhd->btd"]


def program(letters: str):
    """Jitted (output, gradients by x and by weight), and x, weight and cotangent on the mesh."""
    random, mesh = np.random.default_rng(0), jax.sharding.get_mesh()
    x, weight, out = re.split(",|->", letters)

    def make(which: str, spec_of) -> jax.Array:
        shape = tuple(SIZES[letter] for letter in which)
        array = random.normal(size=shape).astype(np.float32)
        return jax.device_put(array, NamedSharding(mesh, spec_of(which, shape)))

    arrays = (
        make(x, lambda which, _: activation(which)),
        make(weight, lambda which, shape: split(which, shape, mesh.shape)),
        make(out, lambda which, _: activation(which)),
    )

    def run(x, weight, cotangent):
        def form(x, weight):
            return contract(letters, x, gather(share(weight), np.float32))

        output, pull = jax.vjp(form, x, weight)
        return (output, *pull(cotangent))

    return jax.jit(run), arrays


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize("letters", LETTERS)
def test_it_equals_the_einsum_with_its_gradients(letters, mesh, mesh_of):
    x, weight, out = re.split(",|->", letters)
    with mesh_of(*mesh):
        run, arrays = program(letters)
        found = run(*arrays)
        assert found[0].sharding.spec == activation(out)
        assert found[2].sharding == arrays[1].sharding
    first, second, cotangent = (np.float64(array) for array in arrays)
    expected = (
        np.einsum(letters, first, second),
        np.einsum(f"{out},{weight}->{x}", cotangent, second),
        np.einsum(f"{x},{out}->{weight}", first, cotangent),
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, "fp32")


@pytest.mark.parametrize("letters", LETTERS)
def test_on_one_device_it_is_three_plain_matrix_products(letters, mesh_of):
    with mesh_of():
        run, arrays = program(letters)
        text = run.lower(*arrays).as_text()
    products = re.findall(r"dot_general .*: \((.*)\) -> ", text)
    assert len(products) == 3
    assert all(re.findall(r"tensor<(\w+)>", p) for p in products)
    ranks = [t.count("x") for p in products for t in re.findall(r"tensor<([^>]+)>", p)]
    assert ranks == [2] * 6
