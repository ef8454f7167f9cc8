"""Frozen image encoders, run ahead of training: embeddings in a store, the encoder beside."""
