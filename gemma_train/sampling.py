"""Sampling: prompts of ids in, new ids out, through the model's cache and one function.

That function runs the prompts in one call and then each new token. Prompts are padded on the left,
so that all end in the last column, to a power of two, as is the cache: few lengths are ever
compiled, and a new token's step is compiled once for all prompts of one bucket. Of the settings,
only another top_k compiles anew. Padding is segment 0 and never enters the cache.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from gemma_train.axes import ACTIVATIONS, activation
from gemma_train.data.example import LETTERS
from gemma_train.errors import UserError, require
from gemma_train.model import Cache, Gemma
from gemma_train.model.soft_tokens import Images

SMALLEST_BUCKET = 16


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How many tokens follow a prompt, and how each is chosen."""

    maximum_tokens: int = 100  # new tokens a prompt; fewer where a stop id is drawn
    temperature: float = 1.0  # logits are divided by it; 0 takes the likeliest token (greedy)
    top_k: int = 0  # draw among this many likeliest tokens; 0 draws among all
    seed: int = 0  # of the draws: the same seed, prompts and model give the same tokens

    def __post_init__(self) -> None:
        require(
            self.maximum_tokens >= 1,
            f"maximum_tokens is {self.maximum_tokens}: it must be at least 1",
        )
        require(
            self.temperature == 0 or 1e-3 <= self.temperature <= 1e3,
            f"temperature is {self.temperature}: it must be 0 (greedy) or from 0.001 to 1000",
        )
        require(self.top_k >= 0, f"top_k is {self.top_k}: it must be 0 (all tokens) or more")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be from 0 to 2**32 - 1")


class PromptImage(NamedTuple):
    """An image in a prompt."""

    start: int  # where in the prompt its soft tokens begin
    embeddings: np.ndarray  # [tokens, vision width], as `Gemma.encode_images` gives them


def sample(
    model: Gemma,
    prompts: Sequence[Sequence[int]],
    *,
    config: SamplingConfig,
    stop_ids: Collection[int] = (),
    images: Sequence[Sequence[PromptImage]] = (),
) -> list[list[int]]:
    """The new ids of each prompt, as `stream` gives them."""
    new: list[list[int]] = [[] for _ in prompts]
    for step in stream(model, prompts, config=config, stop_ids=stop_ids, images=images):
        for row, token in step.items():
            new[row].append(token)
    return new


def stream(
    model: Gemma,
    prompts: Sequence[Sequence[int]],
    *,
    config: SamplingConfig,
    stop_ids: Collection[int] = (),
    images: Sequence[Sequence[PromptImage]] = (),
) -> Iterator[dict[int, int]]:
    """New ids as they come: in each step, the number of a prompt -> the id that follows it.

    With `images`, so many lists as prompts: what stands among a prompt's ids where the soft tokens
    of an image do does not matter.

    A prompt that draws one of `stop_ids` is missing from that step on; there are at most
    `config.maximum_tokens` steps. What a row draws depends on its own ids, its number and the
    seed, not on its neighbours. Runs on the mesh in force, over which rows are split. Raises
    `UserError` at once for prompts that are empty, too long or not of the vocabulary, and for a
    mesh that splits positions.
    """
    _check(model, prompts, config)
    _check_images(model, prompts, images)
    return _steps(model, prompts, config, frozenset(stop_ids), images)


def _steps(
    model: Gemma,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    stop_ids: frozenset[int],
    images: Sequence[Sequence[PromptImage]],
) -> Iterator[dict[int, int]]:
    tokens_bt, positions_bt, segments_bt = _padded(prompts, model.config.context)
    seen = _placed(images, prompts, tokens_bt) if any(images) else None
    ends_b1 = positions_bt[:, -1:]
    slots = _bucket(int(ends_b1.max()) + 1 + config.maximum_tokens, model.config.context)
    advance = partial(
        _advance,
        model,
        temperature=np.float32(config.temperature or 1.0),
        key=jax.random.key(config.seed),
        slots=slots,
        top_k=1 if config.temperature == 0 else min(config.top_k, model.config.vocabulary),
    )
    next_b1, cache = advance(None, tokens_bt, positions_bt, segments_bt, seen)
    going = list(range(len(prompts)))
    for number in range(1, config.maximum_tokens + 1):
        drawn_b1 = next_b1
        if number < config.maximum_tokens:  # sent before this step's ids are waited for
            segments_b1 = np.ones_like(ends_b1)
            next_b1, cache = advance(cache, drawn_b1, ends_b1 + number, segments_b1)
        drawn = np.asarray(drawn_b1)[:, 0].tolist()
        going = [row for row in going if drawn[row] not in stop_ids]
        if not going:
            return
        yield {row: drawn[row] for row in going}


@partial(jax.jit, static_argnames=("slots", "top_k"), donate_argnames="cache")
def _advance(
    model: Gemma,
    cache: Cache | None,
    tokens_bt: jax.Array,
    positions_bt: jax.Array,
    segments_bt: jax.Array,
    images: Images | None = None,
    *,
    temperature: jax.Array,
    key: jax.Array,
    slots: int,
    top_k: int,
) -> tuple[jax.Array, Cache | None]:
    """The [b, 1] ids that follow the last column, whole on every device, and the cache.

    Without a cache the tokens are the prompts, and one of `slots` tokens a row is begun.
    """
    rows = tokens_bt.shape[0]
    if cache is None:
        cache = Cache.empty(model.config, rows, slots, model.compute.dtype)
    ends_b = positions_bt[:, -1]
    tokens_bt, positions_bt, segments_bt = (
        reshard(x, activation("bt")) for x in (tokens_bt, positions_bt, segments_bt)
    )
    images = jax.tree.map(lambda x: reshard(x, activation(LETTERS[x.ndim])), images)
    states_btd, cache = model(tokens_bt, positions_bt, segments_bt, cache, images)
    logits_btv = reshard(model.unembed(states_btd[:, -1:]), PartitionSpec(None, None, None))

    def draw(row: jax.Array, position: jax.Array, logits_v: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(jax.random.fold_in(key, row), position)
        if not top_k:
            return jax.random.categorical(row_key, logits_v / temperature)
        likeliest, ids = jax.lax.top_k(logits_v, top_k)
        return ids[jax.random.categorical(row_key, likeliest / temperature)]

    drawn_b = jax.vmap(draw)(jnp.arange(rows), ends_b, logits_btv[:, 0])
    return drawn_b[:, None].astype(jnp.int32), cache


def _padded(
    prompts: Sequence[Sequence[int]], context: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[b, t] tokens, positions and segments: prompts end in the last column.

    The first prompt is repeated until the rows can be split over the mesh.
    """
    rows = [*prompts, *[prompts[0]] * (-len(prompts) % _row_parts())]
    length = _bucket(max(map(len, prompts)), context)
    tokens_bt = np.zeros((len(rows), length), np.int32)
    segments_bt = np.zeros_like(tokens_bt)
    for row, ids in enumerate(rows):
        tokens_bt[row, length - len(ids) :] = ids
        segments_bt[row, length - len(ids) :] = 1
    positions_bt = np.maximum(np.cumsum(segments_bt, axis=1, dtype=np.int32) - 1, 0)
    return tokens_bt, positions_bt, segments_bt


def _placed(
    images: Sequence[Sequence[PromptImage]],
    prompts: Sequence[Sequence[int]],
    tokens_bt: np.ndarray,
) -> Images:
    """The images of padded prompts; what has none has blank ones that stand nowhere."""
    tokens, width = next(one.embeddings.shape for own in images for one in own)
    rows, length = tokens_bt.shape
    soft_bt = np.full_like(tokens_bt, -1)
    embeddings_bipe = np.zeros((rows, max(map(len, images)), tokens, width), np.float32)
    for row in range(rows):
        own = row if row < len(prompts) else 0  # the first is repeated
        for number, (start, embeddings) in enumerate(images[own]):
            first = length - len(prompts[own]) + start
            soft_bt[row, first : first + tokens] = number * tokens + np.arange(tokens)
            embeddings_bipe[row, number] = embeddings
    return Images(embeddings_bipe=embeddings_bipe, soft_bt=soft_bt)


def _bucket(tokens: int, context: int) -> int:
    """The power of two that holds so many tokens, no more than the context needs."""
    return min(max(1 << (tokens - 1).bit_length(), SMALLEST_BUCKET), context)


def _row_parts() -> int:
    """Over how many devices the rows are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in ACTIVATIONS["b"])


def _check(model: Gemma, prompts: Sequence[Sequence[int]], config: SamplingConfig) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    require(not mesh.empty, "no mesh is in force: sample within jax.set_mesh(make_mesh(...))")
    data, seq = mesh.shape["data_major"] * mesh.shape["data_minor"], mesh.shape["seq"]
    require(
        seq == 1,
        f"mesh.seq is {seq}, but a new token has one position: "
        f"sample with mesh.data {data * seq} and mesh.seq 1",
    )
    require(len(prompts) > 0, "there are no prompts: give at least one, such as <bos> alone")
    vocabulary, context = model.config.vocabulary, model.config.context
    for number, ids in enumerate(prompts):
        require(len(ids) > 0, f"prompt {number} has no ids: begin it with <bos>")
        strange = [token for token in ids if not 0 <= token < vocabulary]
        require(
            not strange,
            f"prompt {number} has the ids {strange[:3]}: the model's go from 0 to {vocabulary - 1}",
        )
        require(
            len(ids) + config.maximum_tokens <= context,
            f"prompt {number} has {len(ids)} tokens and maximum_tokens is {config.maximum_tokens}: "
            f"together more than model.context, {context}",
        )


def _check_images(
    model: Gemma, prompts: Sequence[Sequence[int]], images: Sequence[Sequence[PromptImage]]
) -> None:
    if not any(images):
        return
    vision = model.config.vision
    if vision is None:
        raise UserError("this model sees no images: it has no model.vision")
    require(
        len(images) == len(prompts),
        f"there are {len(prompts)} prompts and images for {len(images)}: give each a list",
    )
    for number, (ids, own) in enumerate(zip(prompts, images, strict=True)):
        free = 0
        for start, embeddings in own:
            require(
                embeddings.shape == (vision.tokens, vision.width),
                f"prompt {number} has an image of {embeddings.shape}, the model's are "
                f"{(vision.tokens, vision.width)}: tokens, width",
            )
            require(
                free <= start <= len(ids) - vision.tokens,
                f"prompt {number} of {len(ids)} ids has an image at {start}: its {vision.tokens} "
                "soft tokens must stand within, after those of the one before",
            )
            free = start + vision.tokens
