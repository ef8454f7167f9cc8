"""Peak FLOP/s by the names that JAX gives devices."""

import pytest

from gemma_train.metrics.peak import PEAKS, model_flops_utilization, peak_flops


def test_a_tpu_has_one_peak_under_both_of_its_names():
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5") == peak_flops("TPU v5p") == 459e12
    assert peak_flops("TPU v6 lite") == peak_flops("TPU v6e") == 918e12


def test_a_tpu7x_device_is_half_a_chip():
    assert peak_flops("TPU7x") == pytest.approx(2307e12 / 2)


def test_figures_are_dense_and_float32_is_known_for_gpus():
    assert peak_flops("NVIDIA H200") == pytest.approx(989.5e12)
    assert peak_flops("NVIDIA H200", "float32") == 67e12
    assert peak_flops("TPU v4", "float32") is None


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA H200 MIG 1g.18gb", "TPU v99"])
def test_an_unknown_device_has_no_peak_rather_than_a_guess(kind):
    assert peak_flops(kind) is None


def test_every_peak_is_some_hundreds_of_teraflops():
    assert all(1e14 < peak.bfloat16 < 2e15 for peak in PEAKS.values())


def test_utilization_is_the_share_of_all_chips():
    assert model_flops_utilization(100e12, 4, 50e12) == 0.5
    assert model_flops_utilization(100e12, 4, None) is None
