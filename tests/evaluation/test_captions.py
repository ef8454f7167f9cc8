"""Captions of held-out images: which documents count, and which answers are right."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from etils import epath

from gemma_train.data.config import DataConfig, ImageRows, TokenSource
from gemma_train.data.images.store import DTYPE, Head, write_head, write_shard
from gemma_train.data.shards import ImageSpan, TokenDataset
from gemma_train.data.token_writer import TokenWriter
from gemma_train.evaluation import captions
from gemma_train.evaluation.captions import Answer, Answers, answers, held_out
from gemma_train.sampling import PromptImage, SamplingConfig, sample
from tests.test_sampling import lively
from tests.test_sampling_images import CONFIG, VISION

EOS, SPAN = 1, ImageSpan(before=2, tokens=VISION.tokens, after=1)
LEAD, CLOSE = [3, 4], [5]
COUNT = 5


def key(number: int) -> bytes:
    return sha256(b"image %d" % number).digest()


def embedding(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    return random.normal(size=(VISION.tokens, VISION.width)).astype(DTYPE)


def captioned(number: int, caption: list[int]) -> tuple[list[int], list[tuple[int, bytes]]]:
    ids = [2, *LEAD, *[0] * SPAN.tokens, *CLOSE, *caption]
    return ids, [(1 + SPAN.before, key(number))]


class Pieces:
    """As much of a tokenizer as a dataset's sidecar wants."""

    sha256, vocabulary = "0" * 64, CONFIG.vocabulary


@pytest.fixture
def data(tmp_path):
    """Writes held-out documents, and the store of all images."""
    store = str(tmp_path / "images")
    head = Head(encoder_sha256="a", encoder="b", side=8, tokens=VISION.tokens, width=VISION.width)
    write_head(store, head)
    numbers = range(COUNT)
    write_shard(
        store, 0, head, [key(n) for n in numbers], np.stack([embedding(n) for n in numbers])
    )

    def make(documents: list, span: ImageSpan = SPAN) -> DataConfig:
        writer = TokenWriter(epath.Path(tmp_path / "held_out"), 2**20, span)
        for document in documents:
            writer.append(*document)
        writer.finish(Pieces(), {}, [])
        return DataConfig(
            tokenizer="none",
            train=(TokenSource(path="none"),),
            held_out=(str(tmp_path / "held_out"),),
            images=ImageRows(store=store),
        )

    return make


@pytest.mark.parametrize("window", [8, 20, 1000])
def test_a_document_counts_that_is_an_image_and_its_caption(data, monkeypatch, window):
    monkeypatch.setattr(captions, "_WINDOW", window)
    two = [2, *LEAD, *[0] * 4, *CLOSE, *LEAD, *[0] * 4, *CLOSE, 9, 1]
    late = [2, 7, *LEAD, *[0] * 4, *CLOSE, 9, 1]
    found = held_out(
        data(
            [
                ([2, 8, 8, 1], []),
                captioned(0, [9, 10, EOS]),
                (two, [(3, key(1)), (10, key(2))]),
                (late, [(4, key(3))]),
                ([2, *range(6, 40), 1], []),
                captioned(4, [11, EOS]),
            ]
        )
    )
    prompt = [2, *LEAD, 0, 0, 0, 0, *CLOSE]
    assert list(found) == [
        (prompt, 3, key(0), [9, 10, EOS]),
        (prompt, 3, key(4), [11, EOS]),
    ]


def test_an_answer_is_right_that_is_the_whole_caption_and_ends(data, mesh_of):
    """Captions made of what the model says: as it is, cut short, gone on, and another word."""
    with mesh_of():
        model = lively(CONFIG)
        prompt = captioned(0, [])[0]
        config = SamplingConfig(maximum_tokens=9, temperature=0.0)
        images = [[PromptImage(3, embedding(n).astype(np.float32))] for n in range(COUNT)]
        said = sample(model, [prompt] * COUNT, config=config, images=images)
        stop = said[0][3]
        own = [ids[: ids.index(stop)] if stop in ids else ids for ids in said]
        words = [own[0], own[1][:-1], [*own[2], 7], [63 - own[3][0], *own[3][1:]]]
        documents = [captioned(number, [*ids, stop]) for number, ids in enumerate(words)]
        found = answers(model, data(documents), most=100, stop_id=stop)
        few = answers(model, data(documents), most=2, stop_id=stop)
    assert found is not None and few is not None
    assert [answer.is_right for answer in found.answers] == [True, False, False, False]
    assert [answer.image for answer in found.answers] == [key(n) for n in range(4)]
    assert [answer.is_right for answer in few.answers] == [True, False]
    assert found.right == few.right == 1


def test_captions_and_images_that_the_context_has_no_room_for_do_not_end_a_run(data, mesh_of):
    wide = replace(SPAN, after=CONFIG.context)
    long = [9] * (CONFIG.context + 5)
    documents = [captioned(0, [9, EOS]), captioned(1, [*long, EOS]), captioned(2, [8, EOS])]
    with mesh_of():
        found = answers(lively(CONFIG), data(documents), most=9, stop_id=EOS)
        assert found is not None and len(found.answers) == 3
        assert not found.answers[1].is_right
        assert len(found.answers[1].said) < CONFIG.context
        late = captioned(0, [9, EOS])
        late[0][8:8] = [5] * wide.after
        assert answers(lively(CONFIG), data([late], wide), most=9, stop_id=EOS) is None


def test_chance_is_the_commonest_captions_share():
    made = [Answer(image=b"", caption=[9, n % 3 % 2, EOS], said=[9, 0, EOS]) for n in range(9)]
    found = Answers(answers=tuple(made))
    assert (found.right, found.chance) == (6, 6 / 9)
    assert found.told == (
        "held-out captions: 6 of 9 right, 66.7%; the commonest one alone would be 66.7%"
    )


def test_text_alone_has_no_captions(data, mesh_of):
    assert list(held_out(data([([2, 8, 8, 1], [])]))) == []
    with mesh_of():
        assert answers(lively(CONFIG), data([([2, 8, 1], [])]), most=9, stop_id=EOS) is None
    assert len(TokenDataset(data([([2, 8, 1], [])]).held_out[0])) == 3
