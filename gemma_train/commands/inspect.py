"""`gemma-train inspect PATH`: what a folder of weights, or a GGUF file, holds."""

from collections import Counter
from dataclasses import dataclass, fields

from gemma_train import storage
from gemma_train.config import load
from gemma_train.conversion import gguf_file
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.names import EMBEDDING, PADDING
from gemma_train.conversion.tensors import Weights
from gemma_train.mesh import MeshConfig, start_runtime

_FORMATS = {"hf": "Hugging Face folder", "gemma": "gemma Orbax folder", "run": "run"}


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Print the config, parameter counts, dtype and bytes of weights, without reading them."""

    path: str  # a Hugging Face folder, a gemma Orbax folder, a run, or a GGUF file
    config: str | None = None  # a run's config whose model the folder holds, if it does not say


def run(arguments: InspectArguments) -> None:
    """Print what is there."""
    expected = load(arguments.config).model if arguments.config else None
    if storage.path(arguments.path).suffix == ".gguf":
        print("\n".join(gguf_file.described(storage.existing(arguments.path, "file"))))
        return
    start_runtime(MeshConfig())
    print("\n".join(described(open_weights(arguments.path, expected))))


def described(weights: Weights) -> list[str]:
    """A model in lines to print: nothing of it is read but what it says of itself."""
    after = "" if weights.step is None else f" after {weights.step:,} steps"
    config = {field.name: getattr(weights.config, field.name) for field in fields(weights.config)}
    table = weights.tensors[EMBEDDING].size
    total = sum(tensor.size for tensor in weights.parameters.values())
    counts: dict[str, object] = {"embedding": table, "body": total - table}
    if weights.config.vision is not None:
        soft = [t.size for n, t in weights.parameters.items() if n.startswith("soft_tokens/")]
        counts |= {"body": total - table - sum(soft), "soft tokens": sum(soft)}
    counts["total"] = total
    if weights.encoder:
        frozen = sum(tensor.size for tensor in weights.encoder.values())
        counts["vision encoder"] = f"{frozen:,}, frozen, not in the total"
    if PADDING in weights.tensors:
        counts["padding rows"] = f"{weights.tensors[PADDING].shape[0]}, no part of the model"
    if weights.left_out:
        counts["left out"] = f"{len(weights.left_out)} tensors of vision encoder and projector"
    stored: Counter[str] = Counter()
    for tensor in weights.tensors.values():
        stored[str(tensor.dtype)] += tensor.bytes
    return [
        f"{weights.source}: {_FORMATS[weights.format]}{after}",
        *_section("model", config | {"pattern": " ".join(weights.config.pattern)}),
        *_section("parameters", counts),
        *_section("stored", {dtype: f"{size:,} bytes" for dtype, size in stored.items()}),
        *_section("beside it", {"tokenizer": weights.tokenizer}),
    ]


def _section(title: str, values: dict[str, object]) -> list[str]:
    def told(value: object) -> str:
        return (
            f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        )

    return ["", title, *(f"  {name:20} {told(value)}" for name, value in values.items())]
