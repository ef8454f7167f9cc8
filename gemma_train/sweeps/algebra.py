"""The algebra of a sweep: tuples of variants, and what makes larger tuples of smaller ones.

A variant is labels and the changes that they stand for. `product` combines every one with every
other, the last changing fastest; `zipped` goes side by side; `chain` puts one after the other. They
are associative, and `product` distributes over a `chain` on its left.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from gemma_train.config import RunConfig, changed
from gemma_train.errors import require

SEED = "seed"  # the label that tells repetitions of one thing apart

Value = str | int | float | bool
Change = Callable[[RunConfig], RunConfig]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way in which a run differs from the base."""

    labels: Mapping[str, Value] = field(default_factory=dict)  # what names it, and tables show
    changes: tuple[Change, ...] = ()  # what is done to the base's config, in this order

    def __call__(self, base: RunConfig) -> RunConfig:
        """The base, changed."""
        return reduce(lambda run, change: change(run), self.changes, base)


Variants = tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The change that gives one field, such as `optimizer.peak_lr`, a value."""

    field: str
    value: Any

    def __call__(self, run: RunConfig) -> RunConfig:
        return changed(run, {self.field: self.value})


def variant(label: str, value: Value, *changes: Change) -> Variants:
    """One variant by hand: `variant("loss", "z", lambda run: replace(run, loss=...))`.

    Without changes it only labels, as to tell the parts of a `chain` apart.
    """
    require(
        isinstance(value, Value),
        f"variant {label!r} is shown as {value!r}: give a text or a number to show",
    )
    return (Variant(labels={label: value}, changes=changes),)


def choices(field: str, *values: Any, label: str = "", names: Iterable[Value] = ()) -> Variants:
    """A variant for each value of a config's field, such as `optimizer.peak_lr`.

    They are labelled with the field's last word, or `label`, and with the value; `names` stand for
    values that are no text or number, such as whole configs.
    """
    values = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    label, shown = label or field.split(".")[-1], tuple(names) or values
    require(bool(values), f"choices of {field!r} are none: give at least one value")
    require(
        len(shown) == len(values),
        f"choices of {field!r} have {len(values)} values and {len(shown)} names: give as many",
    )
    for value in shown:
        require(
            isinstance(value, Value),
            f"choices of {field!r} hold {type(value).__name__}(...): give names=(...) to show",
        )
    return tuple(
        Variant(labels={label: name}, changes=(Setting(field=field, value=value),))
        for name, value in zip(shown, values, strict=True)
    )


def seeds(count: int, first: int = 0) -> Variants:
    """`count` repetitions: each seed draws the initial parameters and the order of the rows.

    They are the same seeds for every variant, so that differences can be taken seed by seed.
    """
    require(count >= 1, f"seeds is {count}: it must be at least 1")
    return tuple(
        Variant(
            labels={SEED: number},
            changes=(
                Setting(field="seed", value=number),
                Setting(field="data.shuffle_seed", value=number),
            ),
        )
        for number in range(first, first + count)
    )


def product(*factors: Variants) -> Variants:
    """Every combination of one variant of each factor; the last factor changes fastest."""
    return tuple(_joined(combination) for combination in itertools.product(*factors))


def zipped(*factors: Variants) -> Variants:
    """The factors' first variants together, then their second, and so on: all equally many."""
    lengths = [len(factor) for factor in factors]
    require(len(set(lengths)) <= 1, f"zipped has factors of {lengths} variants: give equally many")
    return tuple(_joined(combination) for combination in zip(*factors, strict=True))


def chain[Kind](*parts: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """All of the first part, then all of the second, and so on: of variants, or of runs."""
    return tuple(itertools.chain(*parts))


def shown(value: Value) -> str:
    """A label's value as short as it can be told: 0.001, 1e-05, true."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)


def _joined(parts: tuple[Variant, ...]) -> Variant:
    """One variant with the labels and the changes of all."""
    labels: dict[str, Value] = {}
    for part in parts:
        for label in part.labels:
            require(
                label not in labels,
                f"two factors are both labelled {label!r}: give one another label=",
            )
        labels |= part.labels
    return Variant(labels=labels, changes=tuple(itertools.chain(*(p.changes for p in parts))))
