"""Running sums by blocks against NumPy's, on integers, of which float32 sums are exact."""

import re

import jax
import numpy as np
import pytest

from gemma_train.kernels.vocabulary import running_sum as module
from gemma_train.kernels.vocabulary.running_sum import LANES, running_sum
from gemma_train.mesh import MeshConfig

ROWS, DRAWS = 5, 64


@pytest.fixture(params=["looked up", "compared, as on a TPU"])
def form(request, monkeypatch):
    monkeypatch.setattr(module, "on_tpu", lambda: "TPU" in request.param)


def whole_numbers(length: int) -> np.ndarray:
    """Rows of 0 to 8, more than half of them 0, and one row with a single 1."""
    random = np.random.default_rng(length)
    numbers = random.integers(0, 9, (ROWS, length)) * (random.random((ROWS, length)) < 0.4)
    numbers[:, random.integers(length)] = 3
    numbers[0] = np.arange(length) == length - 1
    return numbers


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [1, 40, LANES, LANES + 1, 1000, 4096])
def test_every_number_lies_where_the_running_sum_first_passes_it(length):
    numbers = whole_numbers(length)
    sums, random = np.cumsum(numbers, axis=1), np.random.default_rng(0)
    # On the sums themselves, and between them.
    wanted = np.floor(random.random((ROWS, DRAWS)) * 2 * sums[:, -1:]) / 2
    expected = [np.searchsorted(*row, side="right") for row in zip(sums, wanted, strict=True)]

    running = running_sum(np.float32(numbers))
    assert np.array_equal(running.total_c, sums[:, -1])
    places = np.asarray(jax.jit(lambda x: running.places(x))(np.float32(wanted)))
    assert np.array_equal(places, expected)
    assert (np.take_along_axis(numbers, places, axis=1) > 0).all(), "zeros are never found"


@pytest.mark.usefixtures("form")
def test_what_no_sum_exceeds_lies_where_something_was_added_last():
    numbers = np.zeros((2, 3 * LANES + 7), np.float32)
    numbers[0, [5, LANES + 3]] = numbers[1, -1] = 1
    places = running_sum(numbers).places(np.float32([[2, 1e9], [1, 1e9]]))
    assert places.tolist() == [[LANES + 3] * 2, [3 * LANES + 6] * 2]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("seed", range(4))
def test_nothing_without_mass_is_found_where_sums_are_rounded(seed):
    """Powers from 1 down to nothing, in no order, and numbers up to the total itself."""
    random = np.random.default_rng(seed)
    numbers = np.float32(np.exp(-random.exponential(30, (ROWS, 3000))))
    numbers[random.random(numbers.shape) < 0.5] = 0
    running = running_sum(numbers)
    fractions = np.float32([0, 1e-9, 1 - 2**-24, 1, 1 + 2**-20, *random.random(DRAWS)])
    places = running.places(np.asarray(running.total_c)[:, None] * fractions)
    assert (np.take_along_axis(numbers, np.asarray(places), axis=1) > 0).all()


def compiled(rows: int, draws: int, length: int) -> jax.stages.Compiled:
    """The places of draws among the running sums of rows, on the mesh in force."""
    shapes = [jax.ShapeDtypeStruct((rows, n), np.float32) for n in (length, draws)]
    return jax.jit(lambda x, wanted: running_sum(x).places(wanted)).lower(*shapes).compile()


def test_draws_take_little_more_memory_than_their_row_of_a_large_vocabulary():
    rows, vocabulary = 32, 262_144
    memory = compiled(rows, 256, vocabulary).memory_analysis()
    assert memory.temp_size_in_bytes <= 2 * rows * vocabulary * 4


def test_a_tpu_gathers_and_loops_nowhere(mesh_of_chips):
    with jax.set_mesh(mesh_of_chips(MeshConfig(data=4, topology="v5e:2x2"))):
        program = compiled(256, 256, 4096).as_text()
    assert "convolution(" in program
    assert not {"gather(", "while("} & set(re.findall(r"\b[a-z-]+\(", program))
