"""Images ahead of training: found, decoded, encoded once, and kept as embeddings."""
