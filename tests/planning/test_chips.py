"""The table of chips is whole, and agrees with what else is known of them."""

import math

import pytest

from gemma_train.metrics.peak import peak_flops
from gemma_train.planning.chips import CHIPS


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_a_chip_is_whole(chip):
    assert CHIPS[chip.generation] is chip
    assert peak_flops(chip.device_kind)
    assert 0.9 * chip.hbm_bytes < chip.usable_hbm_bytes < chip.hbm_bytes
    assert chip.slice_chips <= chip.pod_chips
    assert all(len(shape) == chip.dimensions for shape in chip.shapes)
    assert all(math.prod(shape) <= chip.slice_chips for shape in chip.shapes)
    assert chip.network_bandwidth < chip.host_bandwidth < chip.link_bandwidth < chip.hbm_bandwidth
    assert 90 <= chip.watts <= 500


def test_assumed_power_keeps_to_its_rule():
    """As much per peak FLOP/s as v4; v6e is 67 % more efficient than v5e."""
    per_flop = {name: chip.watts / peak_flops(chip.device_kind) for name, chip in CHIPS.items()}
    assert per_flop["v5e"] == pytest.approx(per_flop["v4"])
    assert per_flop["v5p"] == pytest.approx(per_flop["v4"])
    assert per_flop["v6e"] == pytest.approx(per_flop["v5e"] / 1.67)
