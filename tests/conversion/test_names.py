"""Hugging Face's names and shapes, held to a list written down apart from the name table."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from gemma_train.conversion.names import parameters
from gemma_train.conversion.place import shape_of
from gemma_train.model import sizes
from gemma_train.model.config import GemmaConfig

# (layers, width, query heads, key/value heads, head dimension, hidden, rows, parameters):
# google-deepmind/gemma, gm/nn/_gemma.py, without the padding rows of the vocabulary.
PUBLISHED = {
    "GEMMA1_2B": (18, 2048, 8, 1, 256, 16_384, 256_000, 2_506_172_416),
    "GEMMA1_7B": (28, 3072, 16, 16, 256, 24_576, 256_000, 8_537_680_896),
    "GEMMA2_2B": (26, 2304, 8, 4, 256, 9216, 256_000, 2_614_341_888),
    "GEMMA2_9B": (42, 3584, 16, 8, 256, 14_336, 256_000, 9_241_705_984),
    "GEMMA2_27B": (46, 4608, 32, 16, 128, 36_864, 256_000, 27_227_128_320),
    "GEMMA3_270M": (18, 640, 4, 1, 256, 2048, 262_144, 268_098_176),
    "GEMMA3_1B": (26, 1152, 4, 1, 256, 6912, 262_144, 999_885_952),
    "GEMMA3_4B": (34, 2560, 8, 4, 256, 10_240, 262_144, 3_880_099_328),
    "GEMMA3_12B": (48, 3840, 16, 8, 256, 15_360, 262_144, 11_765_788_416),
    "GEMMA3_27B": (62, 5376, 32, 16, 128, 21_504, 262_144, 27_009_002_240),
}


def of_generation(name: str) -> int:
    return int(name[len("GEMMA")])


def hugging_face(generation, layers, width, heads, groups, head, hidden, rows) -> dict[str, tuple]:
    """The shape of every tensor of a text model, by its name in transformers."""
    shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    layer = {
        "self_attn.q_proj": (heads * head, width),
        "self_attn.k_proj": (groups * head, width),
        "self_attn.v_proj": (groups * head, width),
        "self_attn.o_proj": (width, heads * head),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    if generation >= 2:
        layer |= {"pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
    if generation == 3:
        layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}.weight": layer[name] for name in layer}
    return shapes


def published(name: str) -> dict[str, tuple]:
    return hugging_face(of_generation(name), *PUBLISHED[name][:-1])


def config_of(name: str) -> GemmaConfig:
    return getattr(sizes, name)


def miniature(name: str) -> GemmaConfig:
    """The size with all its layers and heads, but narrow: no two axes have one length."""
    config = replace(config_of(name), vocabulary=26, width=32, head_dimension=6, hidden=14)
    return replace(config, query_scale=config.query_scale and config.width / config.query_heads)


def shapes_in(config: GemmaConfig, generation: int, rows: int | None = None) -> dict[str, tuple]:
    """`hugging_face` of a model that is not published."""
    heads, groups, rows = config.query_heads, config.key_value_heads, rows or config.vocabulary
    size = (config.layers, config.width, heads, groups, config.head_dimension, config.hidden)
    return hugging_face(generation, *size, rows)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_hugging_face(name):
    config = config_of(name)
    found = {}
    for row in parameters(config):
        for layer in range(config.layers) if "{}" in row.hf.name else [0]:
            found[row.hf.name.format(layer)] = shape_of(row.hf.axes, config.sizes)
    assert found == published(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_the_list_are_as_many_as_published(name):
    assert sum(map(math.prod, published(name).values())) == PUBLISHED[name][-1]


@pytest.mark.parametrize("format", ["hf", "gemma", "gguf"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_no_two_parameters_have_one_place(name, format):
    places = [getattr(row, format) for row in parameters(config_of(name))]
    assert max(Counter((place.name, place.part) for place in places).values()) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [("GEMMA1_2B", "pre_feed_forward_norm"), ("GEMMA2_2B", "post_attention_norm")],
)
def test_hugging_faces_post_attention_layernorm_is_another_norm_in_gemma_1(name, meant):
    rows = {row.hf.name: row.name for row in parameters(config_of(name))}
    assert rows["model.layers.{}.post_attention_layernorm.weight"] == "layers/{}/" + meant


def test_bracketed_axes_are_one():
    assert shape_of("(n h) d", {"n": 2, "h": 3, "d": 5}) == (6, 5)
    assert shape_of("d (n h)", {"n": 2, "h": 3, "d": 5}) == (5, 6)
    assert shape_of("v", {"v": 7}) == (7,)
