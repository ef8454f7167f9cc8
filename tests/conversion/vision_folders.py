"""Gemma 3 that sees images, in the names and shapes of both libraries, written down apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gemma_train.conversion.huggingface_config import write_config
from gemma_train.conversion.huggingface_vision import write_multimodal
from gemma_train.model import GemmaConfig
from gemma_train.model.config import VisionConfig
from tests.conversion.gemma_folders import FLOAT32, Tree, miniature
from tests.conversion.test_huggingface import Arrays, random_tensors, write_folder

# No two axes have one length.
VISION = VisionConfig(side=12, patch=3, width=10, layers=4, heads=2, hidden=14, tokens=4)
CONFIG = replace(miniature("GEMMA3_4B", width=48), vision=VISION)
HUB = ("language_model.model.", "multi_modal_projector.", "vision_tower.vision_model.")
# (text, projector, encoder, head) in each family of names.
FAMILIES = {
    "Hub": (*HUB, "language_model.lm_head.weight"),
    "in memory": (
        "model.language_model.",
        "model.multi_modal_projector.",
        "model.vision_tower.",
        "lm_head.weight",
    ),
    "transformers 5": (*HUB[:2], "vision_tower.", "lm_head.weight"),
}


def encoder_shapes(v: VisionConfig) -> dict[str, tuple]:
    """Of transformers' SiglipVisionModel without its head, by the names within it."""
    wide = (v.width, v.width)
    shapes = {
        "embeddings.patch_embedding.weight": (v.width, 3, v.patch, v.patch),
        "embeddings.patch_embedding.bias": (v.width,),
        "embeddings.position_embedding.weight": ((v.side // v.patch) ** 2, v.width),
        "post_layernorm.weight": (v.width,),
        "post_layernorm.bias": (v.width,),
    }
    matrices = {f"self_attn.{part}_proj": wide for part in ("q", "k", "v", "out")}
    matrices |= {"mlp.fc1": (v.hidden, v.width), "mlp.fc2": (v.width, v.hidden)}
    matrices |= {"layer_norm1": (v.width,), "layer_norm2": (v.width,)}
    for number in range(v.layers):
        for name, shape in matrices.items():
            here = f"encoder.layers.{number}.{name}"
            shapes |= {f"{here}.weight": shape, f"{here}.bias": shape[:1]}
    return shapes


def projector_shapes(config: GemmaConfig) -> dict[str, tuple]:
    width = config.vision.width if config.vision else 0
    return {
        "mm_soft_emb_norm.weight": (width,),
        "mm_input_projection_weight": (width, config.width),
    }


def vision_shapes(config: GemmaConfig, projector: str, encoder: str) -> dict[str, tuple]:
    """Hugging Face's of what sees images, by names that begin so."""
    assert config.vision is not None
    return {
        **{projector + name: shape for name, shape in projector_shapes(config).items()},
        **{encoder + name: shape for name, shape in encoder_shapes(config.vision).items()},
    }


def flat_vision(config: GemmaConfig) -> Tree:
    """The same as google-deepmind/gemma nests it in FLAT."""
    v = config.vision
    assert v is not None
    head = v.width // v.heads
    norm = {"scale": (v.width,), "bias": (v.width,)}
    into = {"kernel": (v.width, v.heads, head), "bias": (v.heads, head)}
    block = {
        "LayerNorm_0": norm,
        "LayerNorm_1": norm,
        **{f"MultiHeadDotProductAttention_0/{part}": into for part in ("query", "key", "value")},
        "MultiHeadDotProductAttention_0/out": {
            "kernel": (v.heads, head, v.width),
            "bias": (v.width,),
        },
        "MlpBlock_0/Dense_0": {"kernel": (v.width, v.hidden), "bias": (v.hidden,)},
        "MlpBlock_0/Dense_1": {"kernel": (v.hidden, v.width), "bias": (v.width,)},
    }
    root = "SigLiPFromPatches_0/siglip_encoder"
    patch = {"kernel": (v.patch, v.patch, 3, v.width), "bias": (v.width,)}
    tree: Tree = {
        root: {"pos_embedding": (1, (v.side // v.patch) ** 2, v.width)},
        f"{root}/embedding": patch,
        f"{root}/Transformer/encoder_norm": norm,
        "transformer/embedder/mm_input_projection": {"w": (v.width, config.width)},
        "transformer/embedder/mm_soft_embedding_norm": {"scale": (v.width,)},
    }
    for number in range(v.layers):
        tree |= {f"{root}/Transformer/encoderblock_{number}/{n}": s for n, s in block.items()}
    return tree


def random_arrays(shapes: dict[str, tuple], dtype=FLOAT32) -> Arrays:
    random = np.random.default_rng(7)
    return {n: random.standard_normal(s, np.float32).astype(dtype) for n, s in shapes.items()}


def hugging_face_arrays(family="Hub", dtype=FLOAT32, vision_dtype=None, rows=None) -> Arrays:
    """Every tensor of a folder of `CONFIG`, filled at random."""
    text, projector, encoder, _ = FAMILIES[family]
    cut = {
        text + name.removeprefix("model."): array
        for name, array in random_tensors(CONFIG, 3, dtype, rows).items()
    }
    shapes = vision_shapes(CONFIG, projector, encoder)
    return cut | random_arrays(shapes, vision_dtype or dtype)


def json_config(config: GemmaConfig = CONFIG, rows: int | None = None) -> dict:
    text = write_config(config, "float32", rows=rows or config.vocabulary)
    return write_multimodal(text, config, ("float32", "float32"), None)


def hugging_face_folder(folder: Path, *shards: Arrays) -> str:
    return write_folder(folder, json_config(), *(shards or (hugging_face_arrays(),)))
