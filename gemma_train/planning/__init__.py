"""What a run would need of a TPU pod, and what it would cost, before anything is rented."""
