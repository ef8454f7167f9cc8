"""Losses over the vocabulary, and a teacher's candidates, without [tokens, vocabulary] arrays."""
