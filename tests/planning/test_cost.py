"""Energy, carbon and money: each the product of its inputs."""

import pytest

from gemma_train.errors import UserError
from gemma_train.planning.cost import CostConfig, cost
from gemma_train.planning.slices import Slices


def test_a_run_costs_the_product_of_its_inputs():
    inputs = CostConfig(chip_watts=200.0, pue=1.5, grid=0.4, price=2.0)
    found = cost(Slices.named("v5e:4x4", 2), inputs, steps=3600, step_seconds=2.0)
    assert found.seconds == 7200
    assert found.chip_hours == 64
    assert found.kilowatt_hours == pytest.approx(64 * 0.2 * 1.5)
    assert found.kilograms_co2 == pytest.approx(64 * 0.2 * 1.5 * 0.4)
    assert found.money == 128


def test_without_a_price_there_is_no_money_and_power_is_the_chips():
    slices = Slices.named("v4:4x4x4")
    found = cost(slices, CostConfig(pue=1.0), steps=1, step_seconds=3600.0)
    assert found.money is None
    assert found.kilowatt_hours == pytest.approx(64 * 0.170)


@pytest.mark.parametrize(
    "wrong", [{"pue": 0.9}, {"price": -1.0}, {"grid": float("nan")}, {"chip_watts": float("inf")}]
)
def test_inputs_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"^cost.{next(iter(wrong))} is "):
        CostConfig(**wrong)
