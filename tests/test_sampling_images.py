"""Prompts with images: the cache against whole recomputation through the model's own door."""

from dataclasses import replace

import numpy as np
import pytest

from gemma_train.errors import UserError
from gemma_train.model import Gemma
from gemma_train.sampling import PromptImage, SamplingConfig, sample
from gemma_train.vision import VisionConfig
from tests.test_sampling import CONTEXT, GEMMA1, GEMMA3, lively

VISION = VisionConfig(side=8, patch=2, width=12, layers=1, heads=2, hidden=16, tokens=4)
CONFIG = replace(GEMMA3, vision=VISION, window=5)
GREEDY = SamplingConfig(maximum_tokens=10, temperature=0.0)
RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.normal(size=(2, VISION.tokens, VISION.width)).astype(np.float32)
PROMPTS = [[2, 9, 0, 0, 0, 0, 33], [2, 8, 21], [2, 5, *[0] * 4, 7, *[0] * 4, 11, 12]]
IMAGES = [[PromptImage(2, FIRST)], [], [PromptImage(2, SECOND), PromptImage(7, FIRST)]]


@pytest.fixture(autouse=True)
def one_device(mesh_of):
    with mesh_of():
        yield


def greedy_without_cache(model: Gemma, tokens: int) -> list[list[int]]:
    rows = [list(prompt) for prompt in PROMPTS]
    index_bt = np.full((len(rows), CONTEXT), -1, np.int32)
    for row, (own, numbers) in enumerate(zip(IMAGES, ([0], [], [1, 0]), strict=True)):
        for (start, _), number in zip(own, numbers, strict=True):
            index_bt[row, start : start + VISION.tokens] = number
    for _ in range(tokens):
        logits_btv = model.logits(
            np.asarray([ids + [0] * (CONTEXT - len(ids)) for ids in rows], np.int32),
            segment_ids_bt=(np.arange(CONTEXT) < [[len(ids)] for ids in rows]).astype(np.int32),
            image_embeddings=np.stack([FIRST, SECOND]),
            image_index_bt=index_bt,
        )
        best_bt = np.asarray(logits_btv).argmax(axis=-1)
        for ids, best_t in zip(rows, best_bt, strict=True):
            ids.append(int(best_t[len(ids) - 1]))
    return [ids[-tokens:] for ids in rows]


def test_greedy_with_the_cache_is_greedy_by_recomputing_everything():
    model = lively(CONFIG)
    found = sample(model, PROMPTS, config=GREEDY, images=IMAGES)
    assert found == greedy_without_cache(model, 10)
    other = [[PromptImage(2, SECOND)], *IMAGES[1:]]
    changed = sample(model, PROMPTS, config=GREEDY, images=other)
    assert changed[1:] == found[1:]
    assert changed[0] != found[0]


def test_rows_split_over_a_mesh_see_their_own_images(mesh_of):
    expected = sample(lively(CONFIG), PROMPTS, config=GREEDY, images=IMAGES)
    with mesh_of(data=2):
        assert sample(lively(CONFIG), PROMPTS, config=GREEDY, images=IMAGES) == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:2], "there are 3 prompts and images for 2: give each a list"),
        ([[PromptImage(4, FIRST)], [], []], "prompt 0 of 7 ids has an image at 4: its 4 soft"),
        ([[], [], [PromptImage(7, FIRST)] * 2], "prompt 2 of 13 ids has an image at 7"),
        ([[PromptImage(2, FIRST[:2])], [], []], r"prompt 0 has an image of \(2, 12\)"),
    ],
)
def test_images_that_cannot_be_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        sample(lively(CONFIG), PROMPTS, config=GREEDY, images=images)


def test_a_model_of_text_sees_none():
    with pytest.raises(UserError, match="sees no images"):
        sample(lively(GEMMA1), PROMPTS, config=GREEDY, images=IMAGES)
