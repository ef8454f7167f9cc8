"""Running sums by blocks against NumPy's, on integers, of which float32 sums are exact."""

import jax
import numpy as np
import pytest

from gemma_train.kernels.vocabulary.running_sum import LANES, running_sum

ROWS, DRAWS = 5, 64


def whole_numbers(length: int) -> np.ndarray:
    """Rows of 0 to 8, more than half of them 0, and one row with a single 1."""
    random = np.random.default_rng(length)
    numbers = random.integers(0, 9, (ROWS, length)) * (random.random((ROWS, length)) < 0.4)
    numbers[:, random.integers(length)] = 3
    numbers[0] = np.arange(length) == length - 1
    return numbers


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


def test_what_no_sum_passes_lies_in_the_last_place_of_the_last_block():
    running = running_sum(np.ones((1, LANES + 1), np.float32))
    assert running.places(np.float32([[LANES + 1, 1e9]])).tolist() == [[2 * LANES - 1] * 2]
