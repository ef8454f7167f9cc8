"""The one name table: where each format keeps each of our parameters, and with which axes there.

Read in both directions, so that import and export cannot drift. Here are the rows of text;
`vision_names.py` has those of images, `place.py` says what a row is.
Sources: transformers, models/gemma*/modeling_gemma*.py; google-deepmind/gemma, gm/ckpts and
gm/nn/_modules.py; gguf-py, constants.py (tensor names) and llama.cpp's converter (norms + 1).
"""

from collections.abc import Iterator
from dataclasses import replace

from gemma_train.conversion.place import Parameter, Place
from gemma_train.conversion.vision_names import ENCODER, encoder_rows, soft_token_rows
from gemma_train.model.config import GemmaConfig, VisionConfig

# What llama.cpp keeps of a norm is the factor itself, 1 + w.
_FACTOR = 1.0
EMBEDDING = "embedding/table"
# Rows of a foreign table beyond our vocabulary; no parameter of a model, but kept by a conversion.
PADDING = "embedding/padding"
# Rows that a format adds to a vocabulary, so that they are known as padding.
PADDED_ROWS = {"hf": {262_144: 262_208}, "gemma": {256_000: 256_128}, "gguf": {}}


def parameters(
    config: GemmaConfig | VisionConfig, *, wide_gates: bool | None = None
) -> Iterator[Parameter]:
    """The rows of the table that a model of this config has, or an encoder by itself.

    `wide_gates` says whether the gemma library keeps gate and up as `d f`, not `f d`; by default
    as it does for this model: in Gemma 1 and Gemma 2 2B.
    """
    if isinstance(config, VisionConfig):
        yield from encoder_rows(config)
        return
    # Equal blocks of all repetitions of the pattern are one stack in a run, and follow each other.
    numbers = sorted(range(config.layers), key=lambda i: (i % len(config.pattern), i))
    for row in _text_rows(config, wide_gates):
        layers = tuple(numbers) if "{}" in row.name else (0,)
        yield _in_family(replace(row, sizes=config.sizes, layers=layers), config)
    if config.vision is not None:
        yield from soft_token_rows(config)
        yield from encoder_rows(config.vision)


def text_prefix(config: GemmaConfig) -> str:
    """What Hugging Face's names of the language model begin with."""
    return "model." if config.vision is None else "language_model.model."


def _in_family(row: Parameter, config: GemmaConfig) -> Parameter:
    name = text_prefix(config) + row.hf.name.removeprefix("model.")
    return replace(row, hf=replace(row.hf, name=name))


def _text_rows(config: GemmaConfig, wide_gates: bool | None) -> Iterator[Parameter]:
    yield Parameter(
        EMBEDDING,
        "v d",
        Place("model.embed_tokens.weight", "v d"),
        Place("transformer/embedder/input_embedding", "v d"),
        Place("token_embd.weight", "v d"),
    )
    yield Parameter(
        "final_norm",
        "d",
        Place("model.norm.weight", "d"),
        Place("transformer/final_norm/scale", "d"),
        Place("output_norm.weight", "d", offset=_FACTOR),
    )
    yield from _attention(config)
    yield from _feed_forward(wide_gates if wide_gates is not None else _has_wide_gates(config))
    yield from _norms(config)


def _attention(config: GemmaConfig) -> Iterator[Parameter]:
    # Where every head has keys and values of its own, the library keeps all three as one.
    fused = config.query_heads == config.key_value_heads
    one, first = "attn/qkv_einsum/w", 1
    query = Place(_GEMMA + one, "n d h", part=0)
    if not fused:
        query, one, first = Place(_GEMMA + "attn/q_einsum/w", "n d h"), "attn/kv_einsum/w", 0
    yield _layer("attention/query", "d n h", "self_attn.q_proj", "(n h) d", query, "attn_q")
    for part, name in enumerate(("key", "value"), start=first):
        yield _layer(
            f"attention/{name}",
            "d k h",
            f"self_attn.{name[0]}_proj",
            "(k h) d",
            Place(_GEMMA + one, "k d h", part=part),
            f"attn_{name[0]}",
        )
    output = Place(_GEMMA + "attn/attn_vec_einsum/w", "n h d")
    yield _layer("attention/output", "n h d", "self_attn.o_proj", "d (n h)", output, "attn_output")
    if config.query_key_norm:
        for name in ("query", "key"):
            yield _norm(
                f"attention/{name}_norm",
                f"self_attn.{name[0]}_norm",
                f"attn/_{name}_norm",
                f"attn_{name[0]}_norm",
                axis="h",
            )


def _feed_forward(wide_gates: bool) -> Iterator[Parameter]:
    for part, name in enumerate(("gate", "up")):
        place = Place(_GEMMA + "mlp/gating_einsum/w", "d f" if wide_gates else "f d", part=part)
        yield _layer(f"feed_forward/{name}", "d f", f"mlp.{name}_proj", "f d", place, f"ffn_{name}")
    down = Place(_GEMMA + "mlp/linear/w", "f d")
    yield _layer("feed_forward/down", "f d", "mlp.down_proj", "d f", down, "ffn_down")


def _norms(config: GemmaConfig) -> Iterator[Parameter]:
    yield _norm("pre_attention_norm", "input_layernorm", "pre_attention_norm", "attn_norm")
    if not config.post_norms:
        # In Gemma 1 this name means the norm before the feed-forward.
        yield _norm("pre_feed_forward_norm", "post_attention_layernorm", "pre_ffw_norm", "ffn_norm")
        return
    yield _norm(
        "post_attention_norm",
        "post_attention_layernorm",
        "post_attention_norm",
        "post_attention_norm",
    )
    yield _norm("pre_feed_forward_norm", "pre_feedforward_layernorm", "pre_ffw_norm", "ffn_norm")
    yield _norm(
        "post_feed_forward_norm", "post_feedforward_layernorm", "post_ffw_norm", "post_ffw_norm"
    )


_GEMMA = "transformer/layer_{}/"


def _layer(ours: str, axes: str, hf: str, hf_axes: str, gemma: Place, gguf: str) -> Parameter:
    return Parameter(
        f"layers/{{}}/{ours}",
        axes,
        Place(f"model.layers.{{}}.{hf}.weight", hf_axes),
        gemma,
        Place(f"blk.{{}}.{gguf}.weight", hf_axes),
    )


def _norm(ours: str, hf: str, gemma: str, gguf: str, axis: str = "d") -> Parameter:
    return Parameter(
        f"layers/{{}}/{ours}",
        axis,
        Place(f"model.layers.{{}}.{hf}.weight", axis),
        Place(f"{_GEMMA}{gemma}/scale", axis),
        Place(f"blk.{{}}.{gguf}.weight", axis, offset=_FACTOR),
    )


def shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, each layer's apart; of no frozen encoder."""
    return {
        name: parameter.shape
        for parameter in parameters(config)
        if not parameter.name.startswith(ENCODER)
        for name in parameter.names
    }


def _has_wide_gates(config: GemmaConfig) -> bool:
    gemma2_2b = not config.query_key_norm and (config.layers, config.width) == (26, 2304)
    return not config.post_norms or gemma2_2b
