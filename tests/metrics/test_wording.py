"""Numbers and times in words."""

import pytest

from gemma_train.metrics.wording import byte_count, count, duration, moment, scientific


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


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (655_000, "655 kB"),
        (15_700_000, "15.7 MB"),
        (16 * 2**30, "17.2 GB"),
        (999.6e9, "1 TB"),
        (3e18, "3e+03 PB"),
    ],
)
def test_bytes_are_told_by_powers_of_1000(size, told):
    assert byte_count(size) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 ms"), (0.00501, "5.01 ms"), (0.518, "518 ms"), (3.157, "3.16 s")]
)
def test_moments_are_told_in_three_digits(seconds, told):
    assert moment(seconds) == told
