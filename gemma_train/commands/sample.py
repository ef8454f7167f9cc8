"""`gemma-train sample MODEL`: continue prompts with a run, or with imported weights."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gemma_train import storage
from gemma_train.config import read_record
from gemma_train.conversion.load import load, load_siglip, open_weights
from gemma_train.conversion.tensors import BFLOAT16, Weights
from gemma_train.data.images.decoding import BadImage, ImageLimits, decoded, pixels, resized
from gemma_train.data.images.markup import Markup
from gemma_train.errors import UserError, require
from gemma_train.mesh import MeshConfig, make_mesh, start_runtime
from gemma_train.model import ComputeConfig
from gemma_train.model.siglip import encode
from gemma_train.run_files import SAMPLE
from gemma_train.sampling import PromptImage, SamplingConfig, stream
from gemma_train.tokenizer.tokenizer import Tokenizer

BETWEEN = "\n---\n"


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Continue prompts with a run's newest checkpoint or imported weights, on one device."""

    model: str  # the folder of a run, a Hugging Face folder or a gemma Orbax folder
    prompt: tuple[str, ...] = ()  # texts to continue; the beginning of a text if none is given
    image: tuple[str, ...] = ()  # files of images, which stand ahead of each prompt's text
    maximum_tokens: int = 100  # new tokens a prompt
    temperature: float = 0.8  # higher is more varied; 0 always takes the likeliest token
    top_k: int = 40  # draw among this many likeliest tokens; 0 draws among all
    seed: int = 0  # another seed, another text
    tokenizer: str | None = None  # SentencePiece model; by default the one that the model came with
    save: bool = False  # write the texts to sample.txt in the run folder, for its report


def run(arguments: SampleArguments) -> None:
    """Print each prompt and its continuation as it grows."""
    sampling = SamplingConfig(
        maximum_tokens=arguments.maximum_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    start_runtime(MeshConfig())
    weights = open_weights(arguments.model)
    held = "bfloat16" if weights.dtype == BFLOAT16 else "float32"
    computed, tokenizer_file = held, arguments.tokenizer or weights.tokenizer
    if weights.format == "run":
        recorded = read_record(weights.source)
        computed = recorded.compute.dtype
        tokenizer_file = tokenizer_file or recorded.data.tokenizer
    if tokenizer_file is None:
        raise UserError(f"{arguments.model!r} came without a tokenizer.model: give --tokenizer")
    tokenizer = Tokenizer.load(tokenizer_file)
    require(
        tokenizer.vocabulary <= weights.config.vocabulary,
        f"{tokenizer_file!r} has {tokenizer.vocabulary:,} pieces, but the model "
        f"{weights.config.vocabulary:,} rows: give the model's own --tokenizer",
    )
    stop_ids = (tokenizer.eos, tokenizer.id_of("<end_of_turn>"))
    texts = arguments.prompt or ("",)
    pictures = [_pixels(file, weights) for file in arguments.image]
    prompts = tokenizer.encode_batch(texts, bos=True)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = load(weights, ComputeConfig(dtype=computed, remat="none"), held)
        images = _ahead(prompts, _embedded(weights, pictures), tokenizer) if pictures else []
        steps = stream(
            model,
            prompts,
            config=sampling,
            stop_ids=stop_ids,
            images=[images] * len(prompts) if images else (),
        )
        after = "" if weights.step is None else f" after {weights.step:,} steps"
        print(f"{arguments.model}{after}\n", flush=True)
        written = []
        for piece in continued(tokenizer, texts, prompts, steps):
            sys.stdout.write(piece)
            sys.stdout.flush()
            written.append(piece)
    if arguments.save:
        target = storage.path(arguments.model) / SAMPLE
        storage.write_whole(target, "".join(written))
        print(f"\nwrote {target}")


def _pixels(file: str, weights: Weights) -> np.ndarray:
    """A file's picture as the model's encoder takes it. Raises `UserError` where there is none."""
    vision = weights.config.vision
    if vision is None or not weights.encoder:
        why = "sees no images" if vision is None else "came without its vision encoder"
        raise UserError(f"{weights.source!r} {why}: leave --image out, or name a model with it")
    try:
        picture = decoded(storage.existing(file, "image").read_bytes(), ImageLimits())
    except BadImage as error:
        raise UserError(f"image {file!r} cannot be read: {error}") from None
    return pixels(resized(picture, vision.side))


def _embedded(weights: Weights, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """[images, tokens, width] embeddings, as a store would hold them. Raises `UserError` where the
    encoder is not the one whose embeddings the model was trained on."""
    assert weights.config.vision is not None
    encoder = load_siglip(weights.encoder, weights.config.vision, "float32")
    return np.asarray(encode(encoder, np.stack(pictures)).astype(BFLOAT16).astype(np.float32))


def _ahead(
    prompts: list[list[int]], embeddings: np.ndarray, tokenizer: Tokenizer
) -> list[PromptImage]:
    """Put the images between each prompt's <bos> and its text; where they are then."""
    ids, images = [tokenizer.bos], []
    markup = Markup.of(tokenizer, embeddings.shape[1])
    for embedding in embeddings:
        images.append(PromptImage(markup.put(ids), embedding))
    for prompt in prompts:
        prompt[:1] = ids
    return images


def continued(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    steps: Iterator[dict[int, int]],
) -> Iterator[str]:
    """Pieces of text to write one after the other: each prompt and what follows it.

    All prompts grow at once; the first unfinished one is told as it grows. A character of several
    byte tokens is held back until it is whole.
    """
    ids, going = [list(prompt) for prompt in prompts], set(range(len(prompts)))
    for row, text in enumerate(texts):
        yield (BETWEEN if row else "") + text
        told = len(tokenizer.decode(prompts[row]))
        while True:
            now = tokenizer.decode(ids[row])
            now = now.rstrip("\ufffd") if row in going else now
            yield now[told:]
            told = max(told, len(now))
            if row not in going:
                break
            new = next(steps, {})
            going = set(new)
            for grown, token in new.items():
                ids[grown].append(token)
    yield "\n"
