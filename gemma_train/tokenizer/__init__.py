"""SentencePiece with Gemma's symbols: loading, training, encoding and decoding."""
