"""The name table's rows of images: the frozen encoder's, and the soft tokens' norm and projection.

Sources: transformers, models/siglip and models/gemma3/modeling_*.py (the names that were published,
`vision_tower.vision_model.*`); google-deepmind/gemma, gm/nn/vision. GGUF keeps them in a file of
their own, which is not written.
"""

from collections.abc import Iterator
from dataclasses import replace

from gemma_train.conversion.place import Parameter, Place
from gemma_train.model.config import GemmaConfig, VisionConfig

ENCODER = "encoder/"  # our names of what is frozen
HF_ENCODER, HF_PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."
GEMMA_ENCODER = "SigLiPFromPatches_0/siglip_encoder/"
GEMMA_PROJECTOR = "transformer/embedder/mm_"


def soft_token_rows(config: GemmaConfig) -> Iterator[Parameter]:
    """What is trained of them; sizes are the language model's."""
    norm, projection = "mm_soft_emb_norm.weight", "mm_input_projection_weight"  # no dot there
    yield Parameter(
        "soft_tokens/norm",
        "e",
        Place(HF_PROJECTOR + norm, "e"),
        Place(GEMMA_PROJECTOR + "soft_embedding_norm/scale", "e"),
        None,
        sizes=config.sizes,
    )
    yield Parameter(
        "soft_tokens/projection",
        "e d",
        Place(HF_PROJECTOR + projection, "e d"),
        Place(GEMMA_PROJECTOR + "input_projection/w", "e d"),
        None,
        sizes=config.sizes,
    )


def encoder_rows(config: VisionConfig) -> Iterator[Parameter]:
    """The encoder's; sizes and layers are its own."""
    for row in _rows():
        layers = tuple(range(config.layers)) if "{}" in row.name else (0,)
        yield replace(row, sizes=config.sizes, layers=layers)


def _rows() -> Iterator[Parameter]:
    patches, positions = "embeddings.patch_embedding", "embeddings.position_embedding.weight"
    yield _row("patches/kernel", "y x o e", patches + ".weight", "e o y x", "embedding/kernel")
    yield _row("patches/bias", "e", patches + ".bias", "e", "embedding/bias")
    yield _row("positions", "p e", positions, "p e", "pos_embedding", "() p e")
    for ours, hf, gemma in (
        ("attention_norm", "layer_norm1", "LayerNorm_0"),
        ("feed_forward_norm", "layer_norm2", "LayerNorm_1"),
    ):
        yield from _norm(f"layers/{{}}/{ours}", f"encoder.layers.{{}}.{hf}", f"{_BLOCK}{gemma}")
    for name in ("query", "key", "value"):
        hf, gemma = f"self_attn.{name[0]}_proj", f"{_HEADS}{name}"
        yield from _linear(name, "e n h", "n h", hf, "(n h) e", gemma)
    yield from _linear("output", "n h e", "e", "self_attn.out_proj", "e (n h)", _HEADS + "out")
    yield from _linear("up", "e f", "f", "mlp.fc1", "f e", "MlpBlock_0/Dense_0")
    yield from _linear("down", "f e", "e", "mlp.fc2", "e f", "MlpBlock_0/Dense_1")
    yield from _norm("final_norm", "post_layernorm", "Transformer/encoder_norm")


_BLOCK, _HEADS = "Transformer/encoderblock_{}/", "MultiHeadDotProductAttention_0/"


def _linear(
    ours: str, axes: str, outputs: str, hf: str, hf_axes: str, gemma: str
) -> Iterator[Parameter]:
    """A matrix, and the bias of its outputs."""
    ours, hf, gemma = f"layers/{{}}/{ours}", f"encoder.layers.{{}}.{hf}", _BLOCK + gemma
    yield _row(f"{ours}/kernel", axes, f"{hf}.weight", hf_axes, f"{gemma}/kernel")
    yield _row(f"{ours}/bias", outputs, f"{hf}.bias", f"({outputs})", f"{gemma}/bias")


def _norm(ours: str, hf: str, gemma: str) -> Iterator[Parameter]:
    yield _row(f"{ours}/scale", "e", f"{hf}.weight", "e", f"{gemma}/scale")
    yield _row(f"{ours}/bias", "e", f"{hf}.bias", "e", f"{gemma}/bias")


def _row(
    ours: str, axes: str, hf: str, hf_axes: str, gemma: str, gemma_axes: str | None = None
) -> Parameter:
    """The gemma library keeps axes as we do, if nothing else is said."""
    return Parameter(
        ENCODER + ours,
        axes,
        Place(HF_ENCODER + hf, hf_axes),
        Place(GEMMA_ENCODER + gemma, gemma_axes or axes),
        None,
    )
