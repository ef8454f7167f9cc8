"""Renting TPUs for a run and keeping it going: `python -m launch VERB FILE`, docs/launching.md."""
