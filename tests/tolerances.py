"""How close is close: the one table of tolerances, never loosened in a test."""

import numpy as np

TOLERANCES = {
    "fp32": 1e-5,  # one kernel in float32
    "deep fp32": 1e-4,  # a whole model, or several steps of it, in float32
    "bf16": 2e-2,  # anything computed in bfloat16
    "bf16 gradient": 2e-3,  # one array rounded to bfloat16, of its length
    # Beside another program, in float32: absolute, absolute, and of the gradient's length.
    "parity logits": 5e-4,
    "parity loss": 1e-5,
    "parity gradient": 2e-3,
}


def assert_close(actual, expected, tolerance: str, what: str = "array"):
    """Fail unless shapes agree and no difference exceeds the tolerance.

    Differences are in units of the largest expected magnitude: of an array of zeros, of 1.
    """
    actual, expected = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    assert np.isfinite(actual).all(), f"{what} is not finite"
    unit = np.abs(expected).max(initial=0.0) or 1.0
    error = np.abs(actual - expected).max(initial=0.0) / unit
    assert error <= TOLERANCES[tolerance], f"{what} is off by {error:.2e} of its largest value"


def assert_close_leaves(actual: dict, expected: dict, tolerance: str):
    """`assert_close` on each leaf of two dicts with the same keys."""
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        assert_close(actual[name], leaf, tolerance, name)
