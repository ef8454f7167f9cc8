"""Text to tokens to rows to batches: host side, NumPy and grain, no device."""
