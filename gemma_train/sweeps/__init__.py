"""Sweeps: named runs by a small algebra, run one after the other, and what they add up to."""

from gemma_train.sweeps.algebra import Variant, chain, choices, product, seeds, variant, zipped
from gemma_train.sweeps.sweep import AtEnd, OverTokens, Run, Sweep, runs_of

__all__ = [
    "AtEnd",
    "OverTokens",
    "Run",
    "Sweep",
    "Variant",
    "chain",
    "choices",
    "product",
    "runs_of",
    "seeds",
    "variant",
    "zipped",
]
