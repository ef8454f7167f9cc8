"""`gemma-train convert SOURCE TARGET --format F`: weights from one format to another."""

from dataclasses import dataclass, replace
from typing import Literal

from gemma_train import storage
from gemma_train.config import load
from gemma_train.conversion.convert import OutputFormat, convert_weights
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.tensors import DTYPES
from gemma_train.mesh import MeshConfig, start_runtime


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Write weights in another format, one tensor at a time."""

    source: str  # a Hugging Face folder, a gemma Orbax folder or a run
    target: str  # the folder, or GGUF file, to make
    format: OutputFormat  # hf: Hugging Face; gemma: FLAT Orbax; gguf: llama.cpp; run: to train from
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of the target; the source's
    tokenizer: str | None = None  # SentencePiece model; by default the one beside the source
    config: str | None = None  # a run's config whose model the source holds, if it does not say


def run(arguments: ConvertArguments) -> None:
    """Convert, and say what was written and what was left out.

    GGUF keeps what sees images in a file of its own, which is not written: the text goes alone.
    """
    start_runtime(MeshConfig())
    expected = load(arguments.config).model if arguments.config else None
    weights = open_weights(arguments.source, expected)
    if arguments.tokenizer:
        storage.existing(arguments.tokenizer, "tokenizer")
        weights = replace(weights, tokenizer=arguments.tokenizer)
    if arguments.format == "gguf" and weights.config.vision is not None:
        weights = weights.text_alone()
    if arguments.dtype:
        weights = weights.cast(DTYPES[arguments.dtype])
    convert_weights(weights, arguments.target, arguments.format)
    parameters = sum(tensor.size for tensor in weights.parameters.values())
    beside = sum(tensor.size for tensor in weights.encoder.values())
    also = f", {beside:,} of the vision encoder" if beside else ""
    print(f"wrote {arguments.target}: {parameters:,} parameters{also} in {weights.dtypes}")
    if weights.left_out:
        print(
            f"left out {len(weights.left_out)} tensors of the vision encoder and its projector, "
            f"such as {weights.left_out[0]}: the text alone is in the target"
        )
    if weights.tokenizer is None:
        print(
            "no tokenizer.model was beside the source: give --tokenizer to have one in the target"
        )
