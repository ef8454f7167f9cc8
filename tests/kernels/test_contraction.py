"""The contraction of activations with a weight against the einsum that it stands for."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.kernels.contraction import contract, contract_each, scaled
from gemma_train.zero3 import gather, share, split, whole
from tests.tolerances import assert_close

SIZES = {"b": 8, "t": 12, "d": 16, "f": 24, "n": 4, "k": 2, "h": 6}
# On 4 x 2 devices d takes four, and another dimension two: shards of whole lanes (zero3._hop).
TWICE_SPLIT = SIZES | {"d": 12, "f": 512, "h": 64}
LETTERS = ["btd,df->btf", "btf,fd->btd", "btd,dnh->btnh", "btd,dkh->btkh", "btnh,nhd->btd"]


def program(letters: str, sizes: dict[str, int] = SIZES):
    """Jitted (output, gradients by x and by weight), and x, weight and cotangent on the mesh."""
    random, mesh = np.random.default_rng(0), jax.sharding.get_mesh()
    x, weight, out = re.split(",|->", letters)

    def make(which: str, spec_of) -> jax.Array:
        shape = tuple(sizes[letter] for letter in which)
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


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [((1, 1, 1), SIZES), ((2, 2, 2), SIZES), ((1, 1, 4), SIZES), ((1, 4, 2), TWICE_SPLIT)],
)
@pytest.mark.parametrize("letters", LETTERS)
def test_it_equals_the_einsum_with_its_gradients(letters, mesh, sizes, mesh_of):
    x, weight, out = re.split(",|->", letters)
    with mesh_of(*mesh):
        run, arrays = program(letters, sizes)
        split_in = [part for part in jax.typeof(arrays[1]).sharding.spec if part]
        assert (len(split_in) == 2) == (sizes is TWICE_SPLIT)
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


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 1, 4)])
def test_several_weights_at_once_are_each_by_itself_with_their_gradients(mesh, mesh_of):
    letters = "btd,dnh->btnh"
    lengths, random = (4, 2, 2), np.random.default_rng(1)
    with mesh_of(*mesh):
        _, (x, _, _) = program(letters)

        def put(array: np.ndarray, spec) -> jax.Array:
            return jax.device_put(np.float32(array), NamedSharding(jax.sharding.get_mesh(), spec))

        def draw(length: int) -> jax.Array:
            shape = (SIZES["d"], length, SIZES["h"])
            return put(
                random.normal(size=shape), split("dnh", shape, jax.sharding.get_mesh().shape)
            )

        def outputs(x, weights):
            return contract_each(letters, x, [share(weight) for weight in weights])

        weights = [draw(length) for length in lengths]
        shapes = [(8, 12, length, SIZES["h"]) for length in lengths]
        cotangents = [put(random.normal(size=shape), activation("btnh")) for shape in shapes]
        found, pull = jax.jit(lambda *a: jax.vjp(outputs, *a))(x, weights)
        by_x, by_weights = jax.jit(lambda pull, c: pull(c))(pull, cotangents)
        assert [g.sharding for g in by_weights] == [w.sharding for w in weights]
    wide = [np.float64(w) for w in weights], [np.float64(c) for c in cotangents]
    for one, weight in zip(found, wide[0], strict=True):
        assert_close(one, np.einsum(letters, np.float64(x), weight), "fp32")
    expected = sum(np.einsum("btnh,dnh->btd", c, w) for w, c in zip(*wide, strict=True))
    assert_close(by_x, expected, "fp32")
    for one, cotangent in zip(by_weights, wide[1], strict=True):
        assert_close(one, np.einsum("btd,btnh->dnh", np.float64(x), cotangent), "fp32")


def test_weights_whose_second_axis_is_split_stay_apart(mesh_of):
    """Behind each other, half of each would change its device."""
    with mesh_of(1, 4, 2):
        _, (x, weight, _) = program("btd,df->btf", TWICE_SPLIT)

        def run(x, weight):
            return contract_each("btd,df->btf", x, [share(weight), share(2 * weight)])

        assert "concatenate" not in str(jax.make_jaxpr(run)(x, weight))
        found = jax.jit(run)(x, weight)
    expected = np.einsum("btd,df->btf", np.float64(x), np.float64(weight))
    for times, one in enumerate(found, 1):
        assert_close(one, times * expected, "fp32")


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 1, 4)])
def test_a_scale_is_a_product_along_the_last_axis_and_its_gradient_waits(mesh, mesh_of):
    with mesh_of(*mesh):
        _, (_, _, cotangent) = program("btf,fd->btd")
        scale = jax.device_put(
            np.float32(np.random.default_rng(2).normal(size=SIZES["d"])),
            NamedSharding(
                jax.sharding.get_mesh(), split("d", (16,), jax.sharding.get_mesh().shape)
            ),
        )

        def run(x, scale, cotangent):
            output, pull = jax.vjp(scaled, x, whole(scale))
            by_x, by_scale = pull(cotangent)
            waiting = jax.typeof(by_scale).sharding.spec.unreduced
            assert bool(waiting) == (jax.sharding.get_abstract_mesh().size > 1)
            return output, by_x, jax.sharding.reshard(by_scale, jax.P(None))

        found = jax.jit(run)(cotangent, scale, cotangent)
    wide, factor = np.float64(cotangent), np.float64(scale)
    for one, other in zip(
        found, (wide * factor, wide * factor, (wide**2).sum((0, 1))), strict=True
    ):
        assert_close(one, other, "fp32")
