"""What XLA's TPU compiler is told beyond its defaults, by chip, and why.

The options belong to the program, not to the environment: `plan` and `train` compile with the same.
An unknown name is refused by the compiler; `tests/compile/test_compiler_options.py` tries them all.
"""

# A miscompile of embedding gradients that a scan accumulates (openxla/xla#49143, jax 0.11.2): the
# pass that moves an all-reduce out of a loop is left out. zero3.share does that work by types.
_CORRECT = {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"}

# The gathers of a layer's weights begin a layer ahead. By default v5e leaves some of them
# synchronous in the scan's forward body (design/pods.md); the two others let the pass reach them.
_PIPELINED_GATHERS = {
    "xla_tpu_enable_ici_ag_pipelining": "true",
    "xla_should_allow_loop_variant_parameter_in_chain": "enabled",
    "xla_should_add_loop_invariant_op_in_chain": "enabled",
}

# By `jax.Device.device_kind`. SparseCore offload on v5p is left out: peers report anomalies of the
# loss with some of its options, and nothing here could compare losses on a chip.
COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    "TPU v4": _CORRECT,
    "TPU v5 lite": _CORRECT,
    "TPU v5": _CORRECT,
    "TPU v6 lite": _CORRECT,
}


def compiler_options(device_kind: str) -> dict[str, str]:
    """The options for a device of this kind; none for what is no TPU of the table."""
    return COMPILER_OPTIONS.get(device_kind, {})
