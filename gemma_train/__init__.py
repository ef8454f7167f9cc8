"""gemma_train: the Gemma recipe (pretraining of Gemma 1, 2 and 3) on JAX, from laptops to TPU pods."""

__version__ = "0.1.0"
