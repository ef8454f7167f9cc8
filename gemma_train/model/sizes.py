"""Every published Gemma as a value.

Sources: Gemma report (arXiv 2403.08295) table 1, Gemma 2 report (2408.00118) table 1, Gemma 3
report (2503.19786) tables 1 and 2; what the tables leave out (head dimensions, windows, query
scales) from google-deepmind/gemma, gemma/gm/nn/_gemma.py. Vocabularies are the tokenizer's rows:
256,000 and 262,144; padding rows of published checkpoints are no part of the model.
"""

from dataclasses import replace

from gemma_train.model.config import GemmaConfig
from gemma_train.vision import VisionConfig

GEMMA1_2B = GemmaConfig(
    vocabulary=256_000,
    width=2048,
    layers=18,
    query_heads=8,
    key_value_heads=1,
    head_dimension=256,
    hidden=16_384,
    context=8192,
)
GEMMA1_7B = replace(
    GEMMA1_2B, width=3072, layers=28, query_heads=16, key_value_heads=16, hidden=24_576
)

GEMMA2_2B = GemmaConfig(
    vocabulary=256_000,
    width=2304,
    layers=26,
    query_heads=8,
    key_value_heads=4,
    head_dimension=256,
    hidden=9216,
    context=8192,
    pattern=("local", "global"),
    window=4096,
    post_norms=True,
    attention_soft_cap=50.0,
    final_soft_cap=30.0,
)
GEMMA2_9B = replace(
    GEMMA2_2B, width=3584, layers=42, query_heads=16, key_value_heads=8, hidden=14_336
)
GEMMA2_27B = replace(
    GEMMA2_2B,
    width=4608,
    layers=46,
    query_heads=32,
    key_value_heads=16,
    head_dimension=128,
    hidden=36_864,
    query_scale=4608 / 32,  # width / heads, not the head dimension
)

GEMMA3_270M = GemmaConfig(
    vocabulary=262_144,
    width=640,
    layers=18,
    query_heads=4,
    key_value_heads=1,
    head_dimension=256,
    hidden=2048,
    context=32_768,
    pattern=("local",) * 5 + ("global",),
    window=512,
    query_key_norm=True,
    post_norms=True,
    global_rope_base=1_000_000.0,
)
GEMMA3_1B = replace(GEMMA3_270M, width=1152, layers=26, hidden=6912)
# 4B and up are pretrained at 32,768 tokens; the last stage brings them to 131,072 with factor 8.
GEMMA3_4B = replace(
    GEMMA3_270M,
    width=2560,
    layers=34,
    query_heads=8,
    key_value_heads=4,
    hidden=10_240,
    window=1024,
)
# The encoder of 4B and up, where they see images (`replace(GEMMA3_4B, vision=SO400M)`): 417M.
SO400M = VisionConfig(side=896, patch=14, width=1152, layers=27, heads=16, hidden=4304, tokens=256)
GEMMA3_12B = replace(
    GEMMA3_4B, width=3840, layers=48, query_heads=16, key_value_heads=8, hidden=15_360
)
GEMMA3_27B = replace(
    GEMMA3_4B,
    width=5376,
    layers=62,
    query_heads=32,
    key_value_heads=16,
    head_dimension=128,
    hidden=21_504,
    query_scale=5376 / 32,  # width / heads, not the head dimension
)

_SHORT = {"Gemma 3 270M": GEMMA3_270M, "Gemma 3 1B": GEMMA3_1B}


def kept_short(model: GemmaConfig) -> str | None:
    """The name of the published size whose RoPE is never rescaled, where `model` is one.

    It is known by the shapes of its text, so that no change of context, RoPE or images hides it.
    """
    shapes = (model.layers, replace(model, vision=None).sizes)
    return next((name for name, it in _SHORT.items() if (it.layers, it.sizes) == shapes), None)
