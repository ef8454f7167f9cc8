"""Attention, contraction and the vocabulary loss: one door each, several forms of one sum."""
