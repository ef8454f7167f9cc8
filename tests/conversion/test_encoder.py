"""A vision encoder by itself: where it is found, what is written, and its sum."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.encoder import encoder_sha256, load_encoder, save_encoder
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.model.siglip import Siglip, encode
from gemma_train.run_files import ENCODER
from tests.conversion.test_huggingface import stored, write_folder
from tests.conversion.vision_folders import (
    CONFIG,
    FAMILIES,
    HUB,
    VISION,
    encoder_shapes,
    hugging_face_arrays,
    hugging_face_folder,
)

FORMATS = ("hf", "gemma", "run")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """One model in every format, and its encoder by itself."""
    folder = tmp_path_factory.mktemp("encoders")
    source = hugging_face_folder(folder / "source")
    found = {format: str(folder / format) for format in FORMATS}
    for format, target in found.items():
        convert_weights(open_weights(source), target, format)
    save_encoder(load_encoder(source), str(folder / "alone"))
    beside = {"in the run": f"{found['run']}/{ENCODER}", "alone": str(folder / "alone")}
    return {"source": source, **found, **beside}


def test_it_is_the_same_in_whatever_folder_it_lies(folders):
    found = {name: load_encoder(folder) for name, folder in folders.items()}
    assert {encoder.config for encoder in found.values()} == {VISION}
    assert len({encoder_sha256(encoder) for encoder in found.values()}) == 1
    assert stored(folders["alone"]) == stored(folders["in the run"])


def test_one_number_or_another_dtype_make_another_encoder(folders):
    encoder = load_encoder(folders["alone"])
    sums = {encoder_sha256(encoder), encoder_sha256(load_encoder(folders["alone"], "bfloat16"))}
    encoder.layers.up.bias[...] = encoder.layers.up.bias[...].at[2, 3].add(1e-6)
    assert len(sums | {encoder_sha256(encoder)}) == 3


def test_it_is_written_by_the_names_of_transformers(folders):
    found = stored(folders["alone"])
    arrays = hugging_face_arrays()
    expected = {
        f"vision_model.{name}": arrays[HUB[2] + name].tobytes() for name in encoder_shapes(VISION)
    }
    assert {name: content for name, (_, _, content) in found.items()} == expected
    keys = json.loads((Path(folders["alone"]) / "config.json").read_text())
    assert keys["architectures"] == ["SiglipVisionModel"]
    assert keys["model_type"] == "siglip_vision_model" and keys["mm_tokens_per_image"] == 4


@pytest.mark.parametrize("format", ["hf", "gemma", "run"])
def test_a_model_encodes_images_with_the_encoder_of_its_folder(format, folders):
    pixels = np.float32(np.random.default_rng(0).uniform(-1, 1, (3, 12, 12, 3)))
    model, encoder = load_model(folders[format]), load_encoder(folders["alone"])
    found = model.encode_images(pixels)
    assert found.shape == (3, VISION.tokens, VISION.width)
    with jax.set_mesh(encoder.positions[...].sharding.mesh):
        np.testing.assert_array_equal(found, encode(encoder, pixels))
    # It is no leaf of the model, and what comes out of a transformation has none.
    assert not [name for name in model.parameters() if "encoder" in name]
    assert jax.tree.map(jnp.zeros_like, model).encoder is None and model.encoder is not None


def test_it_loads_onto_every_device_of_a_mesh(folders, mesh_of):
    expected = by_path(load_encoder(folders["hf"]))
    with mesh_of(1, 2, 2):
        for name, leaf in by_path(load_encoder(folders["hf"])).items():
            assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 4
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_it_comes_in_the_dtype_that_is_asked_for(folders):
    leaves = by_path(load_encoder(folders["gemma"], "bfloat16")).values()
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    with pytest.raises(UserError, match="dtype is 'float16': choose"):
        load_encoder(folders["hf"], "float16")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_either_naming_of_transformers_loads(prefix, folders, tmp_path):
    encoder = FAMILIES["transformers 5"][2]
    arrays = hugging_face_arrays("transformers 5")
    named = {
        prefix + n.removeprefix(encoder): a for n, a in arrays.items() if n.startswith(encoder)
    }
    keys = json.loads((Path(folders["alone"]) / "config.json").read_text())
    loaded = load_encoder(write_folder(tmp_path / "other", keys, named))
    assert encoder_sha256(loaded) == encoder_sha256(load_encoder(folders["hf"]))


def test_what_has_no_encoder_is_refused(tmp_path):
    arrays = {n: x for n, x in hugging_face_arrays().items() if not n.startswith(HUB[2])}
    text = hugging_face_folder(tmp_path / "text", arrays)
    with pytest.raises(UserError, match="holds a model, but no vision encoder"):
        load_encoder(text)
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        load_encoder(str(tmp_path / "empty"))


def test_a_folder_that_exists_is_not_written_over(folders):
    encoder = Siglip(VISION, nnx.Rngs(0))
    with pytest.raises(UserError, match="exists: choose another"):
        save_encoder(encoder, folders["alone"])
    assert CONFIG.vision == VISION
