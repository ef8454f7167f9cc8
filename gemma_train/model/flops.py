"""The model's own FLOPs per token: what the mathematics needs, recomputation left out."""

from gemma_train.model.config import GemmaConfig


def parameter_count(config: GemmaConfig) -> int:
    """Parameters of the model, the embedding counted once (it is tied to the output).

    The frozen vision encoder's are not among them; norm and projection of soft tokens are.
    """
    head = config.head_dimension
    attention = 2 * config.width * head * (config.query_heads + config.key_value_heads)
    feed_forward = 3 * config.width * config.hidden
    norms = (4 if config.post_norms else 2) * config.width
    norms += 2 * head if config.query_key_norm else 0
    layers = config.layers * (attention + feed_forward + norms)
    soft_tokens = config.vision.width * (1 + config.width) if config.vision else 0
    return config.vocabulary * config.width + layers + config.width + soft_tokens


def forward_flops_per_token(config: GemmaConfig, length: int) -> float:
    """Of the forward pass alone, logits included, as `training_flops_per_token` counts: a third."""
    return training_flops_per_token(config, length) / 3.0


def training_flops_per_token(config: GemmaConfig, length: int) -> float:
    """Forward and backward, in FLOPs, averaged over a row of `length` tokens of one document.

    Each weight of a matrix costs 2 forward and 4 backward; each pair of a query and a key that it
    may see 4 * head_dimension per head forward and twice that backward. Local layers see their
    window only.
    """
    head = config.head_dimension
    attention = 2 * config.width * head * (config.query_heads + config.key_value_heads)
    matrices = config.layers * (attention + 3 * config.width * config.hidden)
    matrices += config.vocabulary * config.width
    return 6.0 * matrices + 3.0 * attention_flops_per_token(config, length)


def attention_flops_per_token(config: GemmaConfig, length: int) -> float:
    """Scores and weighted sums of all layers, forward, over rows of `length` tokens."""
    pairs = sum(_pairs(length, config.window if k == "local" else None) for k in config.kinds)
    return 4.0 * config.query_heads * config.head_dimension * pairs / length


def _pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key not later than it, at most `window` apart, itself included."""
    seen = min(window or length, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen
