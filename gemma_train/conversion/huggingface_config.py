"""config.json of Hugging Face's Gemma folders <-> GemmaConfig.

Reads the keys of transformers 4 (`sliding_window_pattern`) and of 5 (`layer_types`); keys that
sparse Hub configs leave out take the defaults of the classes in transformers,
models/gemma{,2,3}/configuration_*.py. Writes keys that both versions read.
"""

from dataclasses import asdict
from typing import Any

from gemma_train.conversion.huggingface_rope import read_rope, write_rope
from gemma_train.conversion.names import PADDED_ROWS
from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig, Kind

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
}
_DEFAULTS["gemma3_text"] = {
    **_DEFAULTS["gemma2"],
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
# Layers of one period of the pattern, the last of them global, where layer_types is not given.
_PERIOD = {"gemma2": 2, "gemma3_text": 6}
_KINDS: dict[str, Kind] = {"sliding_attention": "local", "full_attention": "global"}
_ARCHITECTURES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_MOST_LAYERS = 10_000


def read_config(
    json: dict[str, Any], file: str, expected: GemmaConfig | None = None
) -> GemmaConfig:
    """The architecture that a config.json describes.

    Raises `UserError` naming the key for all that is not as Gemma computes. The bases of RoPE are
    wrong in some folders that circulate: others than the published need to be `expected`.
    """
    kind, given = _text_part(json, file)
    for key in _DEFAULTS[kind]:
        is_null = key in given and given[key] is None and not key.endswith("softcapping")
        require(not is_null, f"{file}: {key} is null: give its value, or leave it out")
    layers = given.get("num_hidden_layers", 1)
    require(
        not isinstance(layers, int) or layers <= _MOST_LAYERS,
        f"{file}: num_hidden_layers is {layers}: at most {_MOST_LAYERS:,} are believed",
    )
    keys = {**_DEFAULTS[kind], **{key: value for key, value in given.items() if value is not None}}
    for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
        keys[cap] = given.get(cap, keys.get(cap))  # null means none
    _check_fixed(kind, keys, file)
    _check_numbers(kind, keys, file)
    try:
        kinds = _kinds(kind, keys, file)
        rope = read_rope(kind, keys, file, expected)
        head, scale = int(keys["head_dim"]), float(keys.get("query_pre_attn_scalar", 0))
        return GemmaConfig(
            vocabulary=_without_padding(int(keys["vocab_size"])),
            width=int(keys["hidden_size"]),
            layers=int(keys["num_hidden_layers"]),
            query_heads=int(keys["num_attention_heads"]),
            key_value_heads=int(keys["num_key_value_heads"]),
            head_dimension=head,
            hidden=int(keys["intermediate_size"]),
            context=int(keys["max_position_embeddings"]),
            pattern=expected.pattern if expected and expected.kinds == kinds else _pattern(kinds),
            window=int(keys["sliding_window"]) if "local" in kinds else None,
            query_scale=scale if scale not in (0, head) and kind != "gemma" else None,
            query_key_norm=kind == "gemma3_text",
            post_norms=kind != "gemma",
            attention_soft_cap=keys["attn_logit_softcapping"],
            final_soft_cap=keys["final_logit_softcapping"],
            **asdict(rope),
        )
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file} is not the config of a Gemma: {error}") from None


def write_config(config: GemmaConfig, dtype: str, *, rows: int) -> dict[str, Any]:
    """The config.json of a text model whose table has `rows` rows.

    Raises `UserError` where no class of transformers computes this architecture.
    """
    kind = _kind_of(config)
    keys: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": rows,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_dimension,
        "max_position_embeddings": config.context,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if kind == "gemma":
        keys["hidden_act"] = "gelu_pytorch_tanh"
        return keys | write_rope(kind, config)
    scale = config.query_scale or config.head_dimension
    names = {ours: theirs for theirs, ours in _KINDS.items()}
    keys |= {
        "query_pre_attn_scalar": int(scale),
        "sliding_window": config.window,
        "layer_types": [names[kind] for kind in config.kinds],
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
    }
    if kind == "gemma3_text":
        keys["sliding_window_pattern"] = len(config.pattern)
    return keys | write_rope(kind, config)


def _text_part(json: dict[str, Any], file: str) -> tuple[str, dict[str, Any]]:
    """(kind of text model, its keys); those of a multimodal config stand in `text_config`."""
    kind = json.get("model_type")
    if kind == "gemma3":
        text = json.get("text_config")
        if not isinstance(text, dict):
            raise UserError(f"{file}: text_config is missing")
        of = text.get("model_type", "gemma3_text")
        require(
            of == "gemma3_text", f"{file}: model_type of text_config is {of!r}, not gemma3_text"
        )
        outer = ("quantization_config", "tie_word_embeddings")
        return of, {**text, **{key: json[key] for key in outer if json.get(key) is not None}}
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise UserError(
            f"{file}: model_type is {kind!r}: gemma, gemma2, gemma3_text and gemma3 are known"
        )
    return kind, json


def _check_fixed(kind: str, keys: dict[str, Any], file: str) -> None:
    """Refuse what would compute something else than a Gemma does."""
    fixed: dict[str, tuple[Any, ...]] = {
        "rms_norm_eps": (1e-6,),
        "attention_bias": (False,),
        "tie_word_embeddings": (True,),
        "use_bidirectional_attention": (False,),
        "hidden_activation": ("gelu_pytorch_tanh",),
    }
    if kind == "gemma":  # its released configs say gelu and mean the tanh form
        fixed["hidden_act"] = ("gelu_pytorch_tanh", "gelu")
    if kind == "gemma3_text":
        fixed["attn_logit_softcapping"] = (None,)
    for key, values in fixed.items():
        value = keys.get(key, values[0])
        require(
            value in values or value is None, f"{file}: {key} is {value!r}: Gemma has {values[0]!r}"
        )
    quantized = keys.get("quantization_config")
    require(not quantized, f"{file}: the weights are quantised: give the unquantised folder")


def _check_numbers(kind: str, keys: dict[str, Any], file: str) -> None:
    """Refuse sizes that are no whole numbers, and scales that are no numbers at all."""
    for key, type_ in (("rope_parameters", dict), ("rope_scaling", dict), ("layer_types", list)):
        value = keys.get(key, type_())
        require(
            isinstance(value, type_), f"{file}: {key} is {value!r}: it must be a {type_.__name__}"
        )
    for key in (*_DEFAULTS[kind], "sliding_window_pattern"):
        value, is_cap = keys.get(key, 1), key.endswith("softcapping")
        types = (int, float) if is_cap or key == "query_pre_attn_scalar" else (int,)
        require(
            (type(value) in types and value > 0) or (value is None and is_cap),
            f"{file}: {key} is {value!r}: it must be a {'' if float in types else 'whole '}number "
            "above 0",
        )


def _kinds(kind: str, keys: dict[str, Any], file: str) -> tuple[Kind, ...]:
    layers = int(keys["num_hidden_layers"])
    if kind == "gemma":
        return ("global",) * layers
    if types := keys.get("layer_types"):
        strange = sorted({str(t) for t in types} - set(_KINDS))
        require(not strange, f"{file}: layer_types has {strange}: {sorted(_KINDS)} are known")
        require(
            len(types) == layers,
            f"{file}: layer_types has {len(types)} entries for num_hidden_layers {layers}",
        )
        return tuple(_KINDS[t] for t in types)
    period = _PERIOD[kind]
    if kind == "gemma3_text":  # transformers does not look at it in Gemma 2
        period = int(keys.get("sliding_window_pattern", period))
    return tuple("local" if (i + 1) % period else "global" for i in range(layers))


def _pattern(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """The shortest pattern that gives these kinds, repeated and cut."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def _without_padding(rows: int) -> int:
    known = {padded: rows for rows, padded in PADDED_ROWS["hf"].items()}
    return known.get(rows, rows)


def _kind_of(config: GemmaConfig) -> str:
    """The text model of transformers that computes this."""
    kind = "gemma"
    if config.post_norms:
        kind = "gemma3_text" if config.query_key_norm else "gemma2"
    capped = config.attention_soft_cap is not None
    one_base = "local" not in config.pattern or config.local_rope_base == config.global_rope_base
    scaled = config.query_scale not in (None, config.head_dimension)
    faults = {
        "query_key_norm without post_norms": config.query_key_norm and not config.post_norms,
        "attention_soft_cap": capped and kind != "gemma2",
        "final_soft_cap": config.final_soft_cap is not None and kind == "gemma",
        "local layers": "local" in config.pattern and kind == "gemma",
        "query_scale": scaled and kind == "gemma",
        "global_rope_factor": config.global_rope_factor != 1 and kind != "gemma3_text",
        "fractional query_scale": bool(config.query_scale and config.query_scale % 1),
        "width, which query_heads does not divide": config.width % config.query_heads != 0,
        "local_rope_base": not one_base and kind == "gemma2",
    }
    fault = next((name for name, holds in faults.items() if holds), None)
    require(
        fault is None, f"transformers' {_ARCHITECTURES[kind]} cannot compute this model's {fault}"
    )
    return kind
