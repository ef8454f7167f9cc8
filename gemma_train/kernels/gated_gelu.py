"""gelu_tanh(gate) * up, the activation of every Gemma."""

import jax


def gated_gelu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gelu(gate) * up with the tanh form of gelu."""
    return jax.nn.gelu(gate, approximate=True) * up
