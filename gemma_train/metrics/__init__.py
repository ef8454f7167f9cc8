"""What a run measures: scalars on disk, the step clock, peak FLOP/s and the progress line."""
