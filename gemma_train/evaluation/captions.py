"""Held-out captions: what a model says of images that it has not seen, word for word.

A document counts that is one image and then its caption. The model is given all up to the image's
end, and is right if, taking the likeliest token each time, it says the whole caption and ends.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from gemma_train.data.config import DataConfig
from gemma_train.data.images.store import EmbeddingStore
from gemma_train.data.shards import TokenDataset
from gemma_train.model import Gemma
from gemma_train.sampling import PromptImage, SamplingConfig, sample

_TOGETHER = 64  # images whose captions grow at once
_WINDOW = 1 << 16  # tokens that are read at one time


class Captioned(NamedTuple):
    """A document of one image and its caption."""

    prompt: list[int]  # up to the end of the image
    start: int  # of the soft tokens in it
    image: bytes  # the key of its embeddings
    caption: list[int]  # with the <eos>


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said of one image, in ids."""

    image: bytes
    caption: list[int]
    said: list[int]

    @property
    def is_right(self) -> bool:
        return self.said == self.caption


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was said of all of them."""

    answers: tuple[Answer, ...]

    @property
    def right(self) -> int:
        return sum(answer.is_right for answer in self.answers)

    @property
    def chance(self) -> float:
        """The share of the commonest caption: what one would have right who always says it."""
        counts = Counter(tuple(answer.caption) for answer in self.answers)
        return max(counts.values()) / len(self.answers)

    @property
    def told(self) -> str:
        """In words, beside chance."""
        total = len(self.answers)
        return (
            f"held-out captions: {self.right:,} of {total:,} right, {self.right / total:.1%}; "
            f"the commonest one alone would be {self.chance:.1%}"
        )


def answers(model: Gemma, data: DataConfig, *, most: int, stop_id: int) -> Answers | None:
    """What a model says of the first `most` held-out images; None where nothing is captioned.

    On the mesh in force. A caption that the model's context has no room for is never right; an
    image that itself has none is left out.
    """
    if data.images is None:
        return None
    store, found = EmbeddingStore(data.images.store), []
    context = model.config.context
    fitting = (one for one in held_out(data) if len(one.prompt) < context)
    documents = islice(fitting, most)
    while group := list(islice(documents, _TOGETHER)):
        room = context - max(len(one.prompt) for one in group)
        longest = max(len(one.caption) for one in group)
        config = SamplingConfig(maximum_tokens=min(longest, room), temperature=0.0)
        said = sample(
            model,
            [one.prompt for one in group],
            config=config,
            stop_ids=(stop_id,),
            images=[
                [PromptImage(one.start, store.read(one.image).astype(np.float32))] for one in group
            ],
        )
        for one, ids in zip(group, said, strict=True):
            ended = len(ids) < config.maximum_tokens
            # The one that ends it is not among what was said.
            whole = [*ids, stop_id] if ended else ids
            found.append(Answer(image=one.image, caption=one.caption, said=whole))
    return Answers(answers=tuple(found)) if found else None


def held_out(data: DataConfig) -> Iterator[Captioned]:
    """The captioned images of the held-out datasets, in their order."""
    for folder in data.held_out:
        dataset = TokenDataset(folder)
        if (span := dataset.description.image) is None:
            continue
        for ids, images in _documents(dataset):
            end = int(images["start"][0]) + span.tokens + span.after if len(images) == 1 else 0
            if end and int(images["start"][0]) == 1 + span.before:  # right behind the <bos>
                start, image = images[0].tolist()
                yield Captioned(ids[:end].tolist(), start, image, ids[end:].tolist())


def _documents(dataset: TokenDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, images) of each document, a window of the stream in memory at a time."""
    place = 0
    while place < len(dataset):
        window = _WINDOW
        tokens, starts, images = dataset.read(place, place + window)
        while len(starts) < 2 and place + len(tokens) < len(dataset):  # a longer document
            window *= 2
            tokens, starts, images = dataset.read(place, place + window)
        ends = [*starts.tolist(), *([len(tokens)] * (place + len(tokens) == len(dataset)))]
        for first, last in pairwise(ends):
            own = images[(first <= images["start"]) & (images["start"] < last)].copy()
            own["start"] -= first
            yield tokens[first:last], own
        place += ends[-1]
