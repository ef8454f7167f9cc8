"""What a model knows: measured on held-out text."""
