"""Images beside transformers on PyTorch: from pixels to logits, loss and gradients.

`make_vision_fixture.py` made the folder fixtures/gemma3_vision: two images in one row, one amid
packed documents in another, text alone in a third. Known mistakes are made here and must be seen.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma_train.conversion import load_model, named, open_weights
from gemma_train.conversion.load import load, load_siglip, some_mesh
from gemma_train.conversion.tensors import Tensor
from gemma_train.data.images.store import EmbeddingStore, Head, image_key, write_head, write_shard
from gemma_train.losses import mean_next_token_loss, mean_next_token_loss_and_gradient
from gemma_train.model import Gemma, gemma, siglip, soft_tokens
from gemma_train.model.siglip import Siglip
from tests.tolerances import TOLERANCES

FOLDER = Path(__file__).parent / "fixtures" / "gemma3_vision"


@cache
def reference() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "reference.npz") as found:
        return dict(found)


@cache
def model() -> Gemma:
    return load_model(str(FOLDER))


def inputs() -> list[np.ndarray]:
    return [reference()[part] for part in ("tokens", "positions", "segments")]


def images(model: Gemma, dtype=None) -> dict[str, jax.Array | np.ndarray]:
    """As the pixels are encoded by the model, or cast as a dataset may keep them."""
    embeddings = model.encode_images(reference()["pixels"])
    kept = np.asarray(embeddings.astype(dtype)) if dtype else embeddings
    return {"image_embeddings": kept, "image_index_bt": reference()["image_index"]}


def off(name: str, found: jax.typing.ArrayLike) -> float:
    """The largest difference from what transformers found."""
    error = float(np.abs(np.asarray(found) - reference()[name]).max())
    print(f"{name} off by {error:.1e}")  # pytest -s
    return error


def logits_off(model: Gemma) -> float:
    """That of the logits, padding apart."""
    found = np.asarray(model.logits(*inputs(), **images(model)))
    return off("logits", np.where(inputs()[2][..., None] > 0, found, 0.0))


def encoder() -> Siglip:
    found = model().encoder
    assert found is not None
    return found


def stages(encoder: Siglip, tokens: soft_tokens.SoftTokens) -> dict[str, jax.Array]:
    """What becomes of the pixels, stage by stage."""
    pixels = jnp.asarray(reference()["pixels"])
    pooled_ipe = encoder(pixels)
    normed_ipe = soft_tokens.rms_norm(pooled_ipe, tokens.norm[...])
    projected_ipd = jnp.einsum("ipe,ed->ipd", normed_ipe, tokens.projection[...])
    return {
        "hidden": encoder.states(pixels),
        "pooled": pooled_ipe,
        "normed": normed_ipe,
        "projected": projected_ipd,
    }


def test_pixels_become_soft_tokens_as_in_transformers():
    with jax.set_mesh(encoder().positions[...].sharding.mesh):
        found = stages(encoder(), model().soft_tokens)
    for name, value in found.items():
        assert off(name, value) <= TOLERANCES["parity logits"], name


def test_logits_are_those_of_transformers():
    assert logits_off(model()) <= TOLERANCES["parity logits"]


def test_the_loss_is_that_of_transformers():
    tokens, _, segments = inputs()
    loss = mean_next_token_loss(model(), tokens, segment_ids_bt=segments, **images(model()))
    assert off("loss", loss) <= TOLERANCES["parity loss"]


def test_every_gradient_is_that_of_transformers():
    loss, gradient = mean_next_token_loss_and_gradient(model(), *inputs(), **images(model()))
    assert off("loss", loss) <= TOLERANCES["parity loss"]
    found = named(gradient, "hf")
    wanted = {
        in_the_hub(name.removeprefix("gradient/")): value
        for name, value in reference().items()
        if name.startswith("gradient/")
    }
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, value in wanted.items():
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        worst = max(worst, error)
        assert error <= TOLERANCES["parity gradient"], name
    print(f"gradients off by at most {worst:.1e} of their lengths")


def in_the_hub(name: str) -> str:
    """The published name of a parameter that transformers names so in memory."""
    for ours, theirs in (
        ("model.language_model.", "language_model.model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def test_embeddings_made_ahead_give_the_same_as_those_made_at_once():
    at_once = images(model())
    expected = np.asarray(model().logits(*inputs(), **at_once))
    loss = mean_next_token_loss(model(), *inputs(), **at_once)
    kept = images(model(), jnp.float32)
    np.testing.assert_array_equal(model().logits(*inputs(), **kept), expected)
    np.testing.assert_array_equal(mean_next_token_loss(model(), *inputs(), **kept), loss)


def test_a_bfloat16_model_takes_embeddings_out_of_a_store_as_its_own(tmp_path):
    half = load_model(str(FOLDER), dtype="bfloat16")
    made = half.encode_images(reference()["pixels"])
    assert made.dtype == jnp.bfloat16
    index = reference()["image_index"]
    expected = half.logits(*inputs(), image_embeddings=made, image_index_bt=index)

    count, tokens, width = made.shape
    keys = [image_key(b"%d" % number) for number in range(count)]
    head = Head(encoder_sha256="a", encoder="b", side=1, tokens=tokens, width=width)
    write_head(str(tmp_path), head)
    write_shard(str(tmp_path), 0, head, keys, np.asarray(made))
    store = EmbeddingStore(str(tmp_path))
    read = np.stack([store.read(key) for key in keys])
    found = half.logits(*inputs(), image_embeddings=read, image_index_bt=index)
    np.testing.assert_array_equal(found, expected)
    for dtype in (jnp.bfloat16, jnp.float32):  # in float32 they are the same numbers
        found = half.logits(*inputs(), **images(half, dtype))
        np.testing.assert_array_equal(found, expected)
    # What float32 encoded and bfloat16 kept differs from it by the rounding alone.
    kept = images(model(), jnp.bfloat16)["image_embeddings"]
    wide = np.float32(images(model())["image_embeddings"])
    assert np.abs(np.float32(kept) - wide).max() <= np.abs(wide).max() * 2.0**-8


def test_soft_tokens_are_no_targets_and_their_own_ids_do_not_matter():
    tokens, positions, segments = inputs()
    given = images(model())
    loss = mean_next_token_loss(model(), *inputs(), **given)
    others = np.where(given["image_index_bt"] >= 0, 7, tokens)
    found = mean_next_token_loss(model(), others, positions, segments, **given)
    np.testing.assert_array_equal(found, loss)


@pytest.fixture
def fresh_programs():
    """Programs compiled before a mistake was made do not hide it, nor those after show it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def refused(model: Gemma) -> None:
    """The check of the logits fails."""
    assert logits_off(model) > 10 * TOLERANCES["parity logits"]


@pytest.mark.usefixtures("fresh_programs")
def test_a_causal_mask_within_images_is_seen(monkeypatch):
    whole = gemma.replace
    monkeypatch.setattr(
        gemma,
        "replace",
        lambda places, **changes: places if "images_bt" in changes else whole(places, **changes),
    )
    refused(model())


@pytest.mark.usefixtures("fresh_programs")
@pytest.mark.parametrize("kind", ["local", "global"])
def test_a_causal_mask_within_images_on_one_kind_of_layers_is_seen(kind, monkeypatch):
    call = gemma.Attention.__call__

    def masked(self, x_btd, places, cache):
        places = replace(places, images_bt=None) if self.kind == kind else places
        return call(self, x_btd, places, cache)

    monkeypatch.setattr(gemma.Attention, "__call__", masked)
    refused(model())


@pytest.mark.usefixtures("fresh_programs")
def test_one_block_for_all_images_of_a_row_is_seen(monkeypatch):
    images_of = gemma.images_of

    class Merged(soft_tokens.Images):
        @property
        def image_bt(self):
            return jnp.minimum(super().image_bt, 0)

    jax.tree_util.register_dataclass(
        Merged, data_fields=["embeddings_bipe", "soft_bt"], meta_fields=[]
    )
    monkeypatch.setattr(gemma, "images_of", lambda *given: Merged(**vars(images_of(*given))))
    refused(model())


@pytest.mark.usefixtures("fresh_programs")
def test_soft_tokens_times_the_root_of_the_width_are_seen(monkeypatch):
    call = soft_tokens.SoftTokens.__call__
    root = model().config.width ** 0.5

    def scaled(self, x_btd, images):
        soft_btd = call(self, x_btd, images)
        return jnp.where((images.soft_bt >= 0)[..., None], soft_btd * root, soft_btd)

    monkeypatch.setattr(soft_tokens.SoftTokens, "__call__", scaled)
    refused(model())


@pytest.mark.usefixtures("fresh_programs")
def test_a_norm_after_the_pooling_that_multiplies_by_w_is_seen(monkeypatch):
    norm = soft_tokens.rms_norm
    monkeypatch.setattr(soft_tokens, "rms_norm", lambda x, scale: norm(x, scale - 1.0))
    refused(model())


@pytest.mark.usefixtures("fresh_programs")
def test_an_exact_gelu_in_the_encoder_is_seen(monkeypatch):
    gelu = jax.nn.gelu

    def exact(self, x_ipe):
        monkeypatch.setattr(
            siglip.jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False)
        )
        try:
            return call(self, x_ipe)
        finally:
            monkeypatch.setattr(siglip.jax.nn, "gelu", gelu)

    call = siglip.SiglipLayer.__call__
    monkeypatch.setattr(siglip.SiglipLayer, "__call__", exact)
    refused(model())


def turned(change) -> Gemma:
    """The model with some tensors of its encoder changed, by their names."""
    weights = open_weights(str(FOLDER))
    tensors = dict(weights.tensors)
    for name, tensor in weights.encoder.items():
        array = change(name, tensor.read())
        tensors[name] = Tensor(array.shape, tensor.dtype, lambda array=array: array)
    weights = replace(weights, tensors=tensors)
    vision = weights.config.vision
    assert vision is not None
    with some_mesh():
        found = load(weights, model().compute)
        found.encoder = load_siglip(weights.encoder, vision, "float32")
    return found


def patches_read_by_columns(name: str, array: np.ndarray) -> np.ndarray:
    return array.swapaxes(0, 1) if name.endswith("patches/kernel") else array


def colours_in_another_order(name: str, array: np.ndarray) -> np.ndarray:
    return array[:, :, ::-1] if name.endswith("patches/kernel") else array


def positions_by_columns(name: str, array: np.ndarray) -> np.ndarray:
    grid = 6
    if not name.endswith("positions"):
        return array
    return array.reshape(grid, grid, -1).swapaxes(0, 1).reshape(array.shape)


def heads_taken_apart_otherwise(name: str, array: np.ndarray) -> np.ndarray:
    if not name.endswith("/query/kernel"):
        return array
    return array.reshape(len(array), *array.shape[:0:-1]).swapaxes(1, 2)


@pytest.mark.parametrize(
    "change",
    [
        patches_read_by_columns,
        colours_in_another_order,
        positions_by_columns,
        heads_taken_apart_otherwise,
    ],
)
def test_a_weight_of_the_encoder_turned_wrongly_is_seen(change):
    assert logits_off(turned(lambda name, array: array)) <= TOLERANCES["parity logits"]
    refused(turned(change))


def test_a_clone_of_a_model_computes_the_same_from_its_embeddings():
    given = images(model())
    found = nnx.clone(model()).logits(*inputs(), **given)
    np.testing.assert_array_equal(found, model().logits(*inputs(), **given))
