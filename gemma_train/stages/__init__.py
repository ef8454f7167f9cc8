"""Stages of a Gemma's life, each a function that makes or changes a RunConfig."""
