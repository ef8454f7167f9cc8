"""Attention, the gated activation and the vocabulary loss: doors that choose a form by platform."""
