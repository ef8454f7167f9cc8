"""config.json: the keys of transformers 4 and 5, of sparse Hub configs, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_train.conversion.huggingface_config import read_config, write_config
from gemma_train.errors import UserError
from gemma_train.model import GemmaConfig, sizes

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
NAMES = ("gemma1_mqa", "gemma1_mha", "gemma2_gqa", "gemma3_long", "gemma3_mqa")
TINY = {"vocabulary": 96, "width": 40, "query_heads": 4, "hidden": 24, "context": 64}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
EIGHTFOLD = {"rope_type": "linear", "factor": 8.0}
LONG = {"global_rope_factor": 8.0, "context": 131_072}  # how Gemma 3 from 4B up was released


def sizes_of(*values: int) -> dict[str, int]:
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads"
    return dict(zip((*names.split(), "num_key_value_heads"), values, strict=True))


# The keys that the Hub's own configs have, but for those that do not concern us.
HUB = {
    "GEMMA1_2B": {
        "model_type": "gemma",
        **sizes_of(2048, 16_384, 18, 8, 1),
        "hidden_act": "gelu",
        "hidden_activation": None,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
    },
    "GEMMA1_7B": {"model_type": "gemma"},  # the class's defaults
    "GEMMA2_2B": {"model_type": "gemma2"},
    "GEMMA2_9B": {"model_type": "gemma2", **sizes_of(3584, 14_336, 42, 16, 8)},
    "GEMMA2_27B": {
        "model_type": "gemma2",
        **sizes_of(4608, 36_864, 46, 32, 16),
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "GEMMA3_1B": {
        "model_type": "gemma3_text",
        **sizes_of(1152, 6912, 26, 4, 1),
        "max_position_embeddings": 32_768,
        "rope_local_base_freq": 10_000,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262_144,
    },
    "GEMMA3_4B": {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "GEMMA3_27B": {
        "model_type": "gemma3",
        "text_config": {
            **sizes_of(5376, 21_504, 62, 32, 16),
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "type": "linear"},
            "sliding_window": 1024,
        },
    },
}


def fixture(name: str) -> dict:
    return json.loads((FIXTURES / name / "config.json").read_text())


def with_old_keys(json: dict) -> dict:
    """The same config, as transformers 4 wrote it."""
    old = {name: value for name, value in json.items() if value is not None}
    ropes = old.pop("rope_parameters")
    everywhere = ropes.get(GLOBAL, ropes)
    old["rope_theta"] = everywhere["rope_theta"]
    if json["model_type"] == "gemma":
        return {**old, "hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None}
    if old.pop("layer_types")[1] == LOCAL:
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        old["rope_local_base_freq"] = ropes[LOCAL]["rope_theta"]
        old["rope_scaling"] = EIGHTFOLD if "factor" in everywhere else None
    return old


def written(config: GemmaConfig, rows: int | None = None) -> dict:
    """What `write_config` gives, as it comes back from a file."""
    keys = write_config(config, "bfloat16", rows=rows or config.vocabulary)
    return json.loads(json.dumps(keys))


GEMMA1 = GemmaConfig(**{**TINY, "hidden": 56}, layers=2, key_value_heads=1, head_dimension=16)
GEMMA2 = GemmaConfig(
    **TINY,
    layers=4,
    key_value_heads=2,
    head_dimension=8,
    pattern=("local", "global"),
    window=5,
    query_scale=5,
    post_norms=True,
    attention_soft_cap=3.0,
    final_soft_cap=5.0,
)
GEMMA3 = replace(
    GEMMA2,
    layers=8,
    pattern=("local",) * 5 + ("global",),
    query_key_norm=True,
    attention_soft_cap=None,
    final_soft_cap=None,
    global_rope_base=1_000_000.0,
    global_rope_factor=8.0,
)


@pytest.mark.parametrize(
    ("name", "expected"), [("gemma1_mqa", GEMMA1), ("gemma2_gqa", GEMMA2), ("gemma3_long", GEMMA3)]
)
def test_what_transformers_5_wrote_is_read_as_it_was_meant(name, expected):
    assert read_config(fixture(name), "config.json") == expected


@pytest.mark.parametrize("name", NAMES)
def test_old_keys_mean_the_same(name):
    old = with_old_keys(fixture(name))
    assert not {"rope_parameters", "layer_types"} & set(old)
    assert read_config(old, "config.json") == read_config(fixture(name), "config.json")


UNUSUAL = replace(GEMMA3, pattern=("local", "local", "global"), local_rope_base=5000.0, window=9)


@pytest.mark.parametrize("config", [GEMMA1, GEMMA2, GEMMA3, UNUSUAL])
def test_what_is_written_is_read_as_the_same_also_by_half_of_its_keys(config):
    keys = written(config)
    assert read_config(keys, "config.json", config) == config
    keys.pop("layer_types", None)  # transformers before 4.53 does not know them
    assert read_config(keys, "config.json", config) == config


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_transformers_5_needs_is_written_with_its_value(name):
    theirs = fixture(name)
    keys = written(read_config(theirs, "config.json"))
    differing = {key for key, value in theirs.items() if keys.get(key) != value}
    # RoPE has its old keys, which both versions read; the others change nothing that is computed.
    assert differing - {"dtype", "rope_parameters"} <= {
        "_sliding_window_pattern",
        "initializer_range",
        "transformers_version",
        "use_bidirectional_attention",
        "use_cache",
    }
    assert keys.get("rope_theta") == with_old_keys(theirs)["rope_theta"]


@pytest.mark.parametrize("name", [n for n, v in vars(sizes).items() if isinstance(v, GemmaConfig)])
def test_every_published_size_is_read_as_it_was_written(name):
    config = getattr(sizes, name)
    assert read_config(written(config), "config.json") == config


@pytest.mark.parametrize("name", HUB)
def test_sparse_hub_configs_are_the_published_models(name):
    long = LONG if "text_config" in HUB[name] else {}
    assert read_config(HUB[name], "config.json") == replace(getattr(sizes, name), **long)


def test_a_padded_vocabulary_is_written_and_read_without_its_padding():
    keys = written(sizes.GEMMA3_4B, rows=262_208)
    assert keys["vocab_size"] == 262_208
    assert read_config(keys, "config.json") == sizes.GEMMA3_4B


def test_no_cap_is_no_cap():
    keys = {**fixture("gemma2_gqa"), "attn_logit_softcapping": None}
    assert read_config(keys, "config.json").attention_soft_cap is None
    assert read_config({"model_type": "gemma2"}, "config.json").attention_soft_cap == 50.0


def test_of_patterns_that_mean_the_same_the_expected_one_is_taken():
    config = replace(sizes.GEMMA3_1B, layers=4)  # local all four, though its pattern is longer
    assert read_config(written(config), "config.json") == replace(config, pattern=("local",))
    assert read_config(written(config), "config.json", config) == config
    other = replace(config, pattern=("global",))
    assert read_config(written(config), "config.json", other).pattern == ("local",)


def refusal_of(name: str, change: dict) -> str:
    with pytest.raises(UserError) as refusal:
        read_config({**fixture(name), **change}, "config.json")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"model_type": "llama"},
            "model_type is 'llama': gemma, gemma2, gemma3_text and gemma3 ar",
        ),
        ({"model_type": None}, "model_type is None: gemma, "),
        ({"model_type": ["gemma"]}, "model_type is ['gemma']: gemma, "),
        ({"model_type": "gemma3"}, "text_config is missing"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3n_text"}},
            "model_type of text_config is 'gemma3n_text', not gemma3_text",
        ),
        (
            {"model_type": "gemma3", "text_config": {}, "tie_word_embeddings": False},
            "tie_word_embeddings is False: Gemma has True",
        ),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised: give the unquantised"),
        ({"layer_types": [LOCAL] * 6}, "layer_types has 6 entries for num_hidden_layers 7"),
        ({"layer_types": ["chunked"] * 7}, "layer_types has ['chunked']: ['full_attention', 'sl"),
        ({"layer_types": 5}, "layer_types is 5: it must be a list"),
    ],
)
def test_another_architecture_is_refused(change, line):
    assert refusal_of("gemma3_mqa", change).startswith(f"config.json: {line}")


@pytest.mark.parametrize(
    ("name", "key", "value", "meant"),
    [
        ("gemma1_mqa", "rms_norm_eps", 1e-5, 1e-6),
        ("gemma1_mqa", "hidden_act", "silu", "gelu_pytorch_tanh"),
        ("gemma1_mqa", "attention_bias", True, False),
        ("gemma1_mqa", "tie_word_embeddings", False, True),
        ("gemma2_gqa", "hidden_activation", "gelu", "gelu_pytorch_tanh"),
        ("gemma3_mqa", "hidden_activation", "gelu", "gelu_pytorch_tanh"),
        ("gemma3_mqa", "use_bidirectional_attention", True, False),
        ("gemma3_mqa", "attn_logit_softcapping", 50.0, None),
    ],
)
def test_what_gemma_computes_otherwise_is_refused(name, key, value, meant):
    line = f"config.json: {key} is {value!r}: Gemma has {meant!r}"
    assert refusal_of(name, {key: value}) == line


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("hidden_size", "40", "whole number"),
        ("hidden_size", 40.5, "whole number"),
        ("head_dim", float("inf"), "whole number"),
        ("num_hidden_layers", -2, "whole number"),
        ("sliding_window", True, "whole number"),
        ("sliding_window_pattern", 0, "whole number"),
        ("query_pre_attn_scalar", "5", "number"),
        ("final_logit_softcapping", 0, "number"),
    ],
)
def test_what_is_no_size_is_refused(key, value, what):
    line = f"config.json: {key} is {value!r}: it must be a {what} above 0"
    assert refusal_of("gemma2_gqa", {key: value, "layer_types": None}) == line


@pytest.mark.parametrize(
    ("size", "change", "fault"),
    [
        ("GEMMA3_1B", {"post_norms": False}, "query_key_norm without post_norms"),
        ("GEMMA3_1B", {"attention_soft_cap": 50.0}, "attention_soft_cap"),
        ("GEMMA1_2B", {"attention_soft_cap": 50.0}, "attention_soft_cap"),
        ("GEMMA1_2B", {"final_soft_cap": 30.0}, "final_soft_cap"),
        ("GEMMA1_2B", {"pattern": ("local", "global"), "window": 9}, "local layers"),
        ("GEMMA1_2B", {"query_scale": 9.0}, "query_scale"),
        ("GEMMA2_2B", {"global_rope_factor": 8.0}, "global_rope_factor"),
        ("GEMMA2_2B", {"global_rope_base": 1e6}, "local_rope_base"),
    ],
)
def test_what_transformers_cannot_compute_is_not_written(size, change, fault):
    with pytest.raises(UserError, match=f"^transformers' Gemma.*cannot compute.*{fault}$"):
        written(replace(getattr(sizes, size), **change))
