"""What Hugging Face's config.json says of images <-> VisionConfig, and the files of a processor.

Keys that sparse Hub configs leave out take the defaults of SiglipVisionConfig and Gemma3Config
(transformers, models/siglip and models/gemma3, configuration_*.py).
"""

from typing import Any

from gemma_train.conversion.vision_names import HF_ENCODER
from gemma_train.errors import UserError, require
from gemma_train.model.config import GemmaConfig, VisionConfig
from gemma_train.tokenizer.symbols import IMAGE_MARKERS
from gemma_train.tokenizer.tokenizer import Tokenizer

MODEL_TYPE = "siglip_vision_model"
TOKENS = "mm_tokens_per_image"  # of Gemma3Config; in an encoder's own folder a key of ours
SOFT_TOKEN = "<image_soft_token>"
_FIELDS = {  # of SiglipVisionConfig, with its default: ours
    "image_size": (224, "side"),
    "patch_size": (16, "patch"),
    "hidden_size": (768, "width"),
    "num_hidden_layers": (12, "layers"),
    "num_attention_heads": (12, "heads"),
    "intermediate_size": (3072, "hidden"),
}
_TOKENS_DEFAULT = 256
_FIXED: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
_MARKER_KEYS = ("boi_token_index", "eoi_token_index")
_GEMMA_MARKERS = (255_999, 256_000)


def read_vision(keys: dict[str, Any], tokens: Any, file: str) -> VisionConfig:
    """The encoder that a SiglipVisionConfig describes, with so many soft tokens an image.

    Raises `UserError` naming the key for all that Gemma's encoder does not have.
    """
    for key, value in _FIXED.items():
        found = keys.get(key, value)
        require(
            found == value or found is None,
            f"{file}: {key} of the vision encoder is {found!r}: Gemma's has {value!r}",
        )
    values = {}
    for key, (default, field) in _FIELDS.items():
        values[field] = _whole(keys.get(key, default), key, file)
    tokens = _TOKENS_DEFAULT if tokens is None else tokens
    try:
        return VisionConfig(**values, tokens=_whole(tokens, TOKENS, file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def write_vision(config: VisionConfig, dtype: str) -> dict[str, Any]:
    """The keys of a SiglipVisionConfig; without the pooling head, which Gemma has no use for."""
    sizes = {key: getattr(config, field) for key, (_, field) in _FIELDS.items()}
    others = {"attention_dropout": 0.0, "vision_use_head": False, "dtype": dtype}
    return {**_FIXED, **sizes, **others}


def write_multimodal(
    text: dict[str, Any], config: GemmaConfig, dtypes: tuple[str, str], tokenizer: str | None
) -> dict[str, Any]:
    """The config.json of a model that sees images, of its `text_config` and (text, vision) dtypes.

    The soft tokens' id is the first that is no word: 262,144 with Gemma's vocabulary.
    """
    assert config.vision is not None, "it sees images"
    outer = ("pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings")
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": dtypes[0],
        "torch_dtype": dtypes[0],
        **{key: text[key] for key in outer},
        **dict(zip(_MARKER_KEYS, _markers(tokenizer), strict=True)),
        "image_token_index": config.vocabulary,
        TOKENS: config.vision.tokens,
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": write_vision(config.vision, dtypes[1]),
    }


def encoder_name(name: str) -> str | None:
    """The table's name of a tensor that an encoder's own folder names so; None of the head's.

    The pooling head of SigLIP is not used by Gemma.
    """
    name = name.removeprefix("vision_model.")
    return None if name.startswith("head.") else HF_ENCODER + name


def processor_files(config: VisionConfig) -> dict[str, dict[str, Any]]:
    """What AutoProcessor reads beside a tokenizer, by the files' names."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_resize": True,
            "size": {"height": config.side, "width": config.side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "image_seq_length": config.tokens,
        },
        "processor_config.json": {
            "processor_class": "Gemma3Processor",
            "image_seq_length": config.tokens,
        },
    }


def _markers(tokenizer: str | None) -> tuple[int, int]:
    """The ids of an image's start and end; Gemma's where no tokenizer says others."""
    if tokenizer is None:
        return _GEMMA_MARKERS
    start, end = map(Tokenizer.load(tokenizer).id_of, IMAGE_MARKERS)
    return start, end


def _whole(value: Any, key: str, file: str) -> int:
    require(
        type(value) is int and value > 0,
        f"{file}: {key} is {value!r}: it must be a whole number above 0",
    )
    return value
