"""Losses: a config value each, and one function from (model, batch) to the sums of a step."""
