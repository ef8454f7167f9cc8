"""Numbers and times in words."""

import pytest

from gemma_train.metrics.wording import count, duration, scientific


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (987, "987"), (12_345, "12.3k"), (999_600, "1M"), (7.89e9, "7.89B"), (2e12, "2T")],
)
def test_counts_have_three_digits(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_times_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (0.4153, "0.415"), (12.0, "12"), (6e-4, "6·10⁻⁴"), (-2.5e-12, "-2.5·10⁻¹²")],
)
def test_small_numbers_have_a_power_of_ten(number, text):
    assert scientific(number) == text
