"""Training: the state, the step, its checkpoints and the loop."""
