"""What XLA's TPU compiler is told beyond its defaults, and why.

The options belong to the program, not to the environment: `plan` and `train` compile with the same.
An unknown name is refused by the compiler; `tests/compile/test_compiler_options.py` tries them on
every generation that a plan knows.
"""

# A miscompile of embedding gradients that a scan accumulates (openxla/xla#49143, jax 0.11.2): the
# pass that moves an all-reduce out of a loop is left out. zero3.share does that work by types.
# Nothing else is set. SparseCore offload is left out: peers report anomalies of the loss with some
# of its options, and nothing here could compare losses on a chip.
_CORRECT = {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"}


def compiler_options(device_kind: str) -> dict[str, str]:
    """The options for a `jax.Device.device_kind`: the same for every TPU, none for others."""
    return dict(_CORRECT) if device_kind.startswith("TPU") else {}
