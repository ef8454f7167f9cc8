"""Attention: one door, several forms of one sum, and what they need of other devices along seq."""
