"""gemma_train: the Gemma recipe on JAX, from laptops to TPU pods."""

__version__ = "0.1.0"
