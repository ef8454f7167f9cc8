"""The closed form of the cache's bytes against the arrays that the sampler makes."""

from dataclasses import replace

import jax
import pytest

from gemma_train.model import Cache, sizes
from gemma_train.model.cache_size import cache_bytes

SIZES = [name for name in dir(sizes) if name.startswith("GEMMA")]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("length", "rows", "dtype"), [(300, 3, "float32"), (32_768, 1, "bfloat16")]
)
def test_it_is_what_the_samplers_arrays_take(name, length, rows, dtype, mesh_of):
    config = getattr(sizes, name)
    with mesh_of():
        arrays = jax.eval_shape(lambda: Cache.empty(config, rows, length, dtype))
    expected = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    number_bytes = {"float32": 4, "bfloat16": 2}[dtype]
    assert cache_bytes(config, length, rows=rows, number_bytes=number_bytes) == expected


def test_local_layers_stop_growing_at_their_window():
    """Of 4B's 34 layers 5 grow: at 131,072 tokens its cache is a sixth of an all-global one's."""
    config = sizes.GEMMA3_4B
    slot = 2 * 4 * 256 * 2 + 8
    assert cache_bytes(config, 131_072) == slot * (5 * 131_072 + 29 * 1024)
    everywhere = replace(config, pattern=("global",), window=None)
    assert cache_bytes(everywhere, 131_072) == slot * 34 * 131_072
    assert cache_bytes(config, 1000) == cache_bytes(everywhere, 1000)
