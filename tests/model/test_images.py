"""Images in the model: where soft tokens stand, what they see, and what a call refuses."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from gemma_train.errors import UserError
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.model.siglip import Siglip
from gemma_train.vision import VisionConfig
from tests.tolerances import assert_close

VISION = VisionConfig(side=8, patch=2, width=12, layers=2, heads=2, hidden=16, tokens=4)
CONFIG = GemmaConfig(
    vocabulary=64,
    width=16,
    layers=3,
    query_heads=4,
    key_value_heads=2,
    head_dimension=8,
    hidden=24,
    context=64,
    pattern=("local", "global"),
    window=5,
    query_key_norm=True,
    post_norms=True,
    vision=VISION,
)
COMPUTE = ComputeConfig(dtype="float32", remat="none")
LENGTH = 24


def gemma(config: GemmaConfig = CONFIG) -> Gemma:
    """Every parameter at random, norms too."""
    model, random = Gemma(config, COMPUTE, nnx.Rngs(0)), np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put(
            np.float32(np.asarray(leaf) + random.normal(size=leaf.shape) * 0.1), leaf.sharding
        ),
        model,
    )


def sample(rows: int = 8, config: GemmaConfig = CONFIG):
    """(tokens, embeddings of five images, image of each position); an image a document."""
    random, vision = np.random.default_rng(1), config.vision
    tokens = random.integers(0, config.vocabulary, (rows, LENGTH), dtype=np.int32)
    embeddings = np.float32(random.normal(size=(5, vision.tokens, vision.width)))
    index = np.full((rows, LENGTH), -1, np.int32)
    for row in range(rows):
        index[row, 3 : 3 + vision.tokens] = row % 5
        index[row, 11 : 11 + vision.tokens] = (row + 2) % 5
    return tokens, embeddings, index


def logits(model: Gemma, tokens, embeddings, index, **more) -> np.ndarray:
    return np.asarray(
        model.logits(tokens, image_embeddings=embeddings, image_index_bt=index, **more)
    )


def test_a_soft_token_stands_where_a_row_of_the_table_would(mesh_of):
    """Images of one soft token, which see no more than text does: as tokens of a vocabulary."""
    config = replace(CONFIG, vision=replace(VISION, tokens=1))
    tokens, embeddings, index = sample(3, config)
    with mesh_of():
        model = gemma(config)
        norm = 1.0 + np.asarray(model.soft_tokens.norm[...])
        root = np.sqrt(np.mean(embeddings**2, -1, keepdims=True) + 1e-6)
        soft = embeddings / root * norm @ np.asarray(model.soft_tokens.projection[...])
        # The same from text: the table's last rows are the soft tokens, less the root of the width.
        table = np.array(model.embedding.table[...])
        table[-5:] = soft[:, 0] / config.width**0.5
        written = np.where(index >= 0, len(table) - 5 + index, tokens % (len(table) - 5))
        tokens = tokens % (len(table) - 5)
        as_text = nnx.clone(model)
        as_text.embedding.table[...] = table
        expected = np.asarray(as_text.logits(written))
        found = logits(model, tokens, embeddings, index)
    assert_close(found[..., :-5], expected[..., :-5], "deep fp32")


def test_soft_tokens_see_later_ones_of_their_image_and_text_does_not(mesh_of):
    tokens, embeddings, index = sample(1)
    last = 3 + VISION.tokens - 1  # of the first image, and what stands behind it
    with mesh_of():
        model = gemma()
        before = logits(model, tokens, embeddings, index)
        changed = embeddings.copy()
        changed[0, -1] += 1.0
        moved = np.abs(logits(model, tokens, changed, index) - before).max(-1)[0] > 1e-5
    assert not moved[:3].any(), "text ahead of the image sees none of it"
    assert moved[3 : last + 1].all(), "its own soft tokens all see the last"
    assert moved[last + 1 :].any()


def test_soft_tokens_fill_the_places_of_their_image_in_order(mesh_of):
    tokens, embeddings, index = sample(2)
    with mesh_of():
        model = gemma()
        found = logits(model, tokens, embeddings, index)
        order = [4, 2, 0, 1, 3]
        renamed = np.where(index >= 0, np.argsort(order)[index], -1)
        assert_close(logits(model, tokens, embeddings[order], renamed), found, "deep fp32")
        reversed_ = logits(model, tokens, embeddings[:, ::-1], index)
    assert np.abs(reversed_ - found).max() > 1e-3


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)])
def test_on_any_mesh_logits_and_gradients_are_the_same(mesh, mesh_of):
    inputs, cotangent = sample(), np.random.default_rng(2).normal(size=(8, LENGTH, 64))

    def run():
        model = gemma()
        found = logits(model, *inputs)

        def loss(model):
            tokens, embeddings, index = inputs
            given = {"image_embeddings": embeddings, "image_index_bt": index}
            return (model.logits(tokens, **given) * np.float32(cotangent)).sum()

        gradient = jax.jit(jax.grad(loss))(model)
        return found, {path: np.asarray(leaf) for path, leaf in gradient.parameters().items()}

    with mesh_of():
        expected, expected_gradient = run()
    with mesh_of(*mesh):
        found, gradient = run()
    assert_close(found, expected, "deep fp32")
    for path, leaf in expected_gradient.items():
        assert np.abs(leaf).max() > 0, path
        assert_close(gradient[path], leaf, "deep fp32", path)


def test_the_encoder_gives_what_the_model_takes(mesh_of):
    pixels = np.float32(np.random.default_rng(3).uniform(-1, 1, (2, 8, 8, 3)))
    tokens, _, index = sample(2)
    with mesh_of():
        model = gemma()
        with pytest.raises(UserError, match="came without its vision encoder"):
            model.encode_images(pixels)
        model.encoder = Siglip(VISION, nnx.Rngs(1))
        embeddings = model.encode_images(pixels)
        assert embeddings.shape == (2, VISION.tokens, VISION.width)
        assert np.isfinite(logits(model, tokens, embeddings, np.where(index < 2, index, -1))).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t, e, i: (t, None, i), "image embeddings and image_index_bt go together"),
        (lambda t, e, i: (t, e, None), "image embeddings and image_index_bt go together"),
        (lambda t, e, i: (t, e[:, :3], i), r"embeddings are float32 \(5, 3, 12\): give floats"),
        (lambda t, e, i: (t, np.int32(e), i), r"embeddings are int32 \(5, 4, 12\): give floats"),
        (lambda t, e, i: (t, e, i[:, 1:]), r"image_index_bt is int32 \(2, 23\)"),
        (lambda t, e, i: (t, e, i * 1.0), r"image_index_bt is float64 \(2, 24\)"),
        (lambda t, e, i: (t, e[:2], i), "names image 2 in row 0, but there are 2"),
        (
            lambda t, e, i: (t, e, np.where(i == 0, -1, i)[:, ::-1] * 0),
            "gives image 0 24 positions",
        ),
        (lambda t, e, i: (t + 100, e, i), "tokens go from"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, told, mesh_of):
    with mesh_of():
        model = gemma()
        with pytest.raises(UserError, match=told):
            logits(model, *change(*sample(2)))


def test_a_text_model_takes_no_images(mesh_of):
    with mesh_of():
        model = gemma(replace(CONFIG, vision=None))
        with pytest.raises(UserError, match="sees no images"):
            logits(model, *sample(2))


def test_ids_in_the_place_of_soft_tokens_are_never_looked_up(mesh_of):
    """Hugging Face's is beyond the vocabulary."""
    tokens, embeddings, index = sample(2)
    with mesh_of():
        model = gemma()
        found = logits(model, np.where(index >= 0, 262_144, tokens), embeddings, index)
        assert_close(found, logits(model, tokens, embeddings, index), "fp32")


def test_no_images_are_text(mesh_of):
    tokens, embeddings, index = sample(2)
    with mesh_of():
        model = gemma()
        found = logits(model, tokens, embeddings[:0], np.full_like(index, -1))
        assert_close(found, np.asarray(model.logits(tokens)), "fp32")


def test_a_window_must_hold_an_image():
    with pytest.raises(UserError, match="model.window is 3: it must hold an image, 4 soft tokens"):
        replace(CONFIG, window=3)
