"""What a run takes in days, chip-hours, energy, carbon and money, each input a field.

Energy is that of the chips and of the building around them; hosts and switches are in no published
figure per chip and are left out, as is the making of the hardware.
"""

from dataclasses import dataclass

from gemma_train.errors import require
from gemma_train.planning.slices import Slices


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """Inputs of energy, carbon and money."""

    chip_watts: float | None = None  # a chip's mean power; that of planning/chips.py if not given
    pue: float = 1.1  # the building's energy by its computers' (Google's mean, arXiv:2104.10350)
    grid: float = 0.436  # kg CO2 per kWh (world, 2022: Ember, Global Electricity Review 2023)
    price: float | None = None  # of a chip-hour, in any currency

    def __post_init__(self) -> None:
        for name, least in (("chip_watts", 0.0), ("pue", 1.0), ("grid", 0.0), ("price", 0.0)):
            value = getattr(self, name)
            require(
                value is None or least <= value < float("inf"),
                f"cost.{name} is {value}: it must be a number of at least {least:g}",
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of the whole run."""

    seconds: float
    chip_hours: float
    kilowatt_hours: float
    kilograms_co2: float
    money: float | None


def watts(slices: Slices, config: CostConfig) -> float:
    """A chip's mean power."""
    return slices.chip.watts if config.chip_watts is None else config.chip_watts


def cost(slices: Slices, config: CostConfig, *, steps: int, step_seconds: float) -> Cost:
    """The cost of `steps` steps one after the other, nothing between them."""
    seconds = steps * step_seconds
    chip_hours = slices.chips * seconds / 3600
    energy = chip_hours * watts(slices, config) / 1000 * config.pue
    return Cost(
        seconds=seconds,
        chip_hours=chip_hours,
        kilowatt_hours=energy,
        kilograms_co2=energy * config.grid,
        money=None if config.price is None else chip_hours * config.price,
    )
