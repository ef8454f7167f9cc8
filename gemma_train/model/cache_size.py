"""The memory of a sampler's cache, in closed form: what local layers are for (Gemma 3, 2.1)."""

from gemma_train.model.config import GemmaConfig

_PLACE_BYTES = 8  # of a slot's position and segment


def cache_bytes(config: GemmaConfig, length: int, *, rows: int = 1, number_bytes: int = 2) -> int:
    """Bytes of `Cache.empty` for `length` tokens a row, over all devices.

    A global layer keeps every token, a local one those of its window, each with keys, values and
    its place. `number_bytes` are those of the compute dtype.
    """
    slots = sum(
        min(length, config.window or length) if kind == "local" else length for kind in config.kinds
    )
    numbers = 2 * config.key_value_heads * config.head_dimension
    return rows * slots * (numbers * number_bytes + _PLACE_BYTES)
