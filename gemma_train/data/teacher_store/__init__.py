"""A teacher's targets on disk: what they are, how they are written, and any row of them read."""
