"""What sees images, in and out: names and shapes, bytes there and back, and the text alone."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.huggingface_vision import read_vision
from gemma_train.conversion.load import load_model, named, open_weights
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.names import shapes
from gemma_train.conversion.tensors import BFLOAT16, stacked
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.model.sizes import SO400M
from gemma_train.run_files import ENCODER
from tests.conversion.gemma_folders import (
    FLOAT32,
    bits,
    filled,
    flat_of,
    joined,
    library_shapes,
    restored,
    save,
)
from tests.conversion.test_gemma_orbax import looks_like  # noqa: F401 (a fixture)
from tests.conversion.test_gemma_orbax_layouts import as_nested, as_stacked, deeper
from tests.conversion.test_huggingface import halves, stored, through, write_folder
from tests.conversion.test_mapping import unread
from tests.conversion.test_names import config_of, published
from tests.conversion.vision_folders import (
    CONFIG,
    FAMILIES,
    HUB,
    VISION,
    encoder_shapes,
    flat_vision,
    hugging_face_arrays,
    hugging_face_folder,
    json_config,
    projector_shapes,
    random_arrays,
    vision_shapes,
)

MIXED = [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)]
SEEING = ("GEMMA3_4B", "GEMMA3_12B", "GEMMA3_27B")
ORDERS = ["hf", "run hf", "gemma hf", "gemma run gemma hf", "run gemma hf"]


@pytest.mark.parametrize("name", SEEING)
def test_names_and_shapes_of_published_sizes_are_those_of_both_libraries(name):
    config = replace(config_of(name), vision=SO400M)
    text = {HUB[0] + n.removeprefix("model."): shape for n, shape in published(name).items()}
    of_images = vision_shapes(config, *HUB[1:])
    theirs = unread({**text, **of_images})
    ours = to_ours(theirs, config, "hf", source="folder")
    back = {n: tensor.shape for n, tensor in from_ours(ours, config, "hf").items()}
    # Images need an id beyond the vocabulary: the table has Hugging Face's rows of padding.
    table = f"{HUB[0]}embed_tokens.weight"
    assert back.pop(table) == (262_208, config.width)
    assert back == {n: tensor.shape for n, tensor in theirs.items() if n != table}
    flat = joined({**library_shapes(name), **flat_vision(config)})
    assert {n: t.shape for n, t in from_ours(ours, config, "gemma").items()} == flat
    assert sum(map(math.prod, encoder_shapes(SO400M).values())) == 416_866_032
    assert sum(map(math.prod, projector_shapes(config).values())) == 1152 + 1152 * config.width


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("text", "vision"), MIXED, ids=["float32", "bfloat16", "mixed"])
def test_a_hugging_face_folder_comes_back_byte_for_byte(order, text, vision, tmp_path):
    arrays = hugging_face_arrays("Hub", text, vision)
    source = hugging_face_folder(tmp_path / "source", arrays)
    assert open_weights(source).config == CONFIG
    target = through(source, tmp_path, *order.split())
    assert stored(target) == stored(source)
    assert open_weights(str(target)).config == CONFIG


@pytest.mark.parametrize(("text", "vision"), MIXED, ids=["float32", "bfloat16", "mixed"])
def test_a_gemma_folder_comes_back_byte_for_byte(text, vision, tmp_path):
    tree = {**filled(flat_of(CONFIG, "GEMMA3_4B"), text), **filled(flat_vision(CONFIG), vision)}
    source = save(tmp_path / "source", tree)
    weights = open_weights(source, CONFIG)
    assert weights.config == CONFIG and weights.dtype == text
    convert_weights(weights, str(tmp_path / "there"), "run")
    target = through(str(tmp_path / "there"), tmp_path, "gemma")
    assert bits(restored(target)) == bits(tree)


def test_every_matrix_is_turned_as_the_library_keeps_it(tmp_path):
    arrays = hugging_face_arrays()
    target = through(hugging_face_folder(tmp_path / "source", arrays), tmp_path, "gemma")
    found = joined(restored(target))
    root, v = "SigLiPFromPatches_0/siglip_encoder/", VISION
    encoder = {name.removeprefix(HUB[2]): array for name, array in arrays.items()}
    patches = encoder["embeddings.patch_embedding.weight"]
    expected = {"embedding/kernel": patches.transpose(2, 3, 1, 0)}
    expected["pos_embedding"] = encoder["embeddings.position_embedding.weight"][None]
    for number in range(v.layers):
        here, there = f"Transformer/encoderblock_{number}/", f"encoder.layers.{number}."
        attention = here + "MultiHeadDotProductAttention_0/"
        for part in ("query", "key", "value"):
            matrix = encoder[f"{there}self_attn.{part[0]}_proj.weight"]
            expected[f"{attention}{part}/kernel"] = matrix.T.reshape(v.width, v.heads, -1)
            bias = encoder[f"{there}self_attn.{part[0]}_proj.bias"]
            expected[f"{attention}{part}/bias"] = bias.reshape(v.heads, -1)
        output = encoder[f"{there}self_attn.out_proj.weight"]
        expected[f"{attention}out/kernel"] = output.T.reshape(v.heads, -1, v.width)
        expected[here + "MlpBlock_0/Dense_0/kernel"] = encoder[there + "mlp.fc1.weight"].T
        expected[here + "MlpBlock_0/Dense_1/kernel"] = encoder[there + "mlp.fc2.weight"].T
        expected[here + "LayerNorm_1/bias"] = encoder[there + "layer_norm2.bias"]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[root + name], array, err_msg=name)
    projection = arrays[HUB[1] + "mm_input_projection_weight"]
    np.testing.assert_array_equal(found["transformer/embedder/mm_input_projection/w"], projection)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_names_gives_the_names_that_were_published(family, shards, tmp_path):
    arrays = hugging_face_arrays(family)
    text, _, encoder, head = FAMILIES[family]
    unused = {
        head: arrays[f"{text}embed_tokens.weight"],
        f"{encoder}embeddings.position_ids": np.ones((1, 16), np.float32),
        f"{encoder}head.probe": np.ones((1, 1, 10), np.float32),  # of the pooling head
    }
    whole = {**arrays, **unused}
    parts = halves(whole) if shards == 2 else (whole,)
    source = hugging_face_folder(tmp_path / "source", *parts)
    assert open_weights(source).left_out == (f"{encoder}head.probe",)
    published_names = stored(hugging_face_folder(tmp_path / "hub", hugging_face_arrays()))
    assert stored(through(source, tmp_path, "hf")) == published_names


LAYOUTS = {
    "FLAT": lambda tree: tree,
    "NESTED": as_nested,
    "STACKED": lambda tree: as_stacked(tree, 2, CONFIG.layers),
    "deeper": deeper,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_library_gives_the_same_weights(layout, tmp_path):
    tree = {**filled(flat_of(CONFIG, "GEMMA3_4B"), BFLOAT16), **filled(flat_vision(CONFIG))}
    tree["transformer/embedder"] |= {"mm_output_embedding": np.ones((2, 48), np.float32)}
    flat = open_weights(save(tmp_path / "flat", tree), CONFIG)
    weights = open_weights(save(tmp_path / "other", LAYOUTS[layout](tree)), CONFIG)
    assert bits({n: t.read() for n, t in weights.tensors.items()}) == bits(
        {n: t.read() for n, t in flat.tensors.items()}
    )
    assert [name.rpartition("/")[2] for name in weights.left_out] == ["mm_output_embedding"]
    assert weights.dtype == BFLOAT16
    assert {tensor.dtype for tensor in weights.encoder.values()} == {FLOAT32}


@pytest.mark.parametrize("name", SEEING)
def test_a_published_folder_sees_images_if_the_tensors_are_there(name, looks_like):  # noqa: F811
    config = replace(config_of(name), vision=SO400M)
    text, seeing = library_shapes(name), {**library_shapes(name), **flat_vision(config)}
    assert open_weights(looks_like(unread(joined(text)))).config.vision is None
    weights = open_weights(looks_like(unread(joined(seeing))))
    assert weights.config.vision == SO400M
    assert sum(tensor.size for tensor in weights.encoder.values()) == 416_866_032
    without = replace(weights.config, vision=None)
    alone = open_weights(looks_like(unread(joined(seeing))), without)
    assert alone.config == without
    assert set(alone.left_out) == set(joined(flat_vision(config)))


FORMATS = ["hf", "gemma", "run"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_text_alone_is_read_where_it_is_asked_for(format, tmp_path):
    source = through(hugging_face_folder(tmp_path / "source"), tmp_path, format)
    text = replace(CONFIG, vision=None)
    weights = open_weights(str(source), text)
    count = len(vision_shapes(CONFIG, *HUB[1:]))
    assert weights.config == text and len(weights.left_out) == count
    convert_weights(weights, str(tmp_path / "text"), "hf")
    arrays = {n: x for n, x in hugging_face_arrays().items() if n.startswith(HUB[0])}
    expected = {"model." + n.removeprefix(HUB[0]): x.tobytes() for n, x in arrays.items()}
    assert {n: x[2] for n, x in stored(tmp_path / "text").items()} == expected
    model = load_model(str(source), config=text)
    assert model.encoder is None and "soft_tokens/norm" not in model.parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_sees_images_may_be_anything_where_the_text_alone_is_read(family, tmp_path):
    text, projector, encoder, _ = FAMILIES[family]
    arrays = {n: x for n, x in hugging_face_arrays(family).items() if n.startswith(text)}
    strange = {
        f"{prefix}some.{n}": np.ones(3, np.float32) for n in "ab" for prefix in (projector, encoder)
    }
    keys = json_config() | {"vision_config": {"model_type": "siglip2_vision_model"}}
    source = write_folder(tmp_path / "source", keys, {**arrays, **strange})
    weights = open_weights(source, replace(CONFIG, vision=None))
    assert set(weights.left_out) == set(strange)
    with pytest.raises(UserError, match="model_type of the vision encoder is 'siglip2"):
        open_weights(source)


def test_a_folder_without_a_tower_holds_a_text_model(tmp_path):
    arrays = {n: x for n, x in hugging_face_arrays().items() if not n.startswith(HUB[2])}
    weights = open_weights(hugging_face_folder(tmp_path / "source", arrays))
    assert weights.config == replace(CONFIG, vision=None)
    assert len(weights.left_out) == 2


def test_a_text_model_is_no_model_that_sees_images(tmp_path):
    arrays = {n: x for n, x in hugging_face_arrays().items() if not n.startswith(HUB[2])}
    source = hugging_face_folder(tmp_path / "source", arrays)
    with pytest.raises(UserError, match="another model than the config .model.vision was None"):
        open_weights(source, CONFIG)


def test_gguf_has_no_place_for_images(tmp_path):
    weights = open_weights(hugging_face_folder(tmp_path / "source"))
    message = r"'soft_tokens/norm' \(and \d+ more\) are without a place in format 'gguf'"
    with pytest.raises(UserError, match=message):
        from_ours(weights.tensors, weights.config, "gguf")
    assert from_ours(weights.text_alone().tensors, weights.text_alone().config, "gguf")


def test_padding_rows_are_written_where_the_vocabulary_is_gemmas(tmp_path):
    config = replace(CONFIG, vocabulary=262_144, width=8)
    tree = {**flat_of(config, "GEMMA3_4B"), **flat_vision(config)}
    source = save(tmp_path / "source", filled(tree, BFLOAT16))
    weights = open_weights(source, config)
    convert_weights(weights, str(tmp_path / "hf"), "hf")
    table = load_file(tmp_path / "hf" / "model.safetensors")[f"{HUB[0]}embed_tokens.weight"]
    assert table.shape == (262_208, 8) and not table[262_144:].any()
    keys = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert keys["text_config"]["vocab_size"] == 262_208
    markers = ("image_token_index", "boi_token_index", "eoi_token_index", "mm_tokens_per_image")
    assert [keys[key] for key in markers] == [262_144, 255_999, 256_000, 4]
    assert open_weights(str(tmp_path / "hf")).config == config


def test_a_run_keeps_its_encoder_beside_what_it_trains(tmp_path):
    run = through(hugging_face_folder(tmp_path / "source"), tmp_path, "run")
    model = load_model(str(run))
    assert not [name for name in model.parameters() if "encoder" in name]
    assert stacked(open_weights(str(run)).parameters, CONFIG).keys() == model.parameters().keys()
    (run / ENCODER).rename(tmp_path / "elsewhere")
    weights = open_weights(str(run))
    assert weights.config == CONFIG and not weights.encoder
    assert load_model(str(run)).encoder is None
    for format in ("hf", "gemma", "run"):
        with pytest.raises(UserError, match=f"{run} came without its vision encoder: put one"):
            convert_weights(weights, str(tmp_path / "new"), format)


def test_an_encoder_of_another_size_is_not_the_runs(tmp_path):
    run = through(hugging_face_folder(tmp_path / "source"), tmp_path, "run")
    file = run / ENCODER / "config.json"
    for old, new, told in (
        (
            'per_image": 4',
            'per_image": 16',
            f"{ENCODER} holds another encoder: .*tokens was 4, is 16",
        ),
        ('image_size": 12', 'image_size": 24', r"shape \(16, 10\), but this model's is \(64, 10\)"),
    ):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=told):
            open_weights(str(run))
        file.write_text(text)


def test_names_of_the_leaves_are_those_of_the_model(tmp_path):
    model = load_model(hugging_face_folder(tmp_path / "source"))
    assert by_path(model.encoder).keys() == {
        name.removeprefix("encoder/").replace("layers/0/", "layers/")
        for name in open_weights(str(tmp_path / "source")).encoder
        if not name.startswith(tuple(f"encoder/layers/{i}/" for i in range(1, VISION.layers)))
    }
    trained = {n for n in hugging_face_arrays() if not n.startswith(HUB[2])}
    assert named(model, "hf").keys() == trained
    assert set(shapes(CONFIG)) == set(open_weights(str(tmp_path / "source")).parameters)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"hidden_act": "gelu"}, "hidden_act of the vision encoder is 'gelu': Gemma's has"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps of the vision encoder is 1e-05"),
        ({"num_channels": 1}, "num_channels of the vision encoder is 1"),
        ({"model_type": "siglip2_vision_model"}, "model_type of the vision encoder is 'siglip2"),
        ({"image_size": 30}, "file: vision.patch is 16: it must divide vision.side, 30"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: it must be a whole number above 0"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide': it must be a whole number above 0"),
    ],
)
def test_an_encoder_that_gemma_has_not_is_refused(keys, told):
    with pytest.raises(UserError, match=told) as refusal:
        read_vision({"image_size": 256, **keys}, 256, "file")
    assert "\n" not in str(refusal.value)


def test_keys_that_are_left_out_take_the_defaults_of_the_class():
    found = read_vision({"image_size": 256}, None, "file")
    sizes = (found.side, found.patch, found.width, found.layers, found.heads, found.hidden)
    assert (sizes, found.tokens) == ((256, 16, 768, 12, 12, 3072), 256)
    hub = {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    }
    assert read_vision(hub, 256, "file") == SO400M


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"vision_tower.vision_model.post_layernorm.bias": None},
            "post_layernorm.bias' is missing",
        ),
        ({"multi_modal_projector.mm_soft_emb_norm.weight": None}, "emb_norm.weight' is missing"),
        (
            {"vision_tower.vision_model.extra": (2,)},
            "'vision_tower.vision_model.extra' is unexpect",
        ),
        (
            {"multi_modal_projector.mm_input_projection_weight": (48, 10)},
            r"shape \(48, 10\), but this model's is \(10, 48\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, told, tmp_path):
    arrays = {n: x for n, x in hugging_face_arrays().items() if change.get(n, ()) is not None}
    arrays |= random_arrays({n: shape for n, shape in change.items() if shape})
    source = write_folder(tmp_path / "source", json_config(), arrays)
    with pytest.raises(UserError, match=told) as refusal:
        open_weights(source)
    assert "\n" not in str(refusal.value)
    assert open_weights(source, replace(CONFIG, vision=None)).left_out


def test_dtypes_may_differ_between_text_and_images_but_not_within(tmp_path):
    arrays = hugging_face_arrays("Hub", BFLOAT16, FLOAT32)
    name = f"{HUB[2]}post_layernorm.bias"
    source = Path(hugging_face_folder(tmp_path / "source", arrays))
    save_file({**arrays, name: arrays[name].astype(BFLOAT16)}, source / "model.safetensors")
    weights = open_weights(str(source))
    with pytest.raises(UserError, match="mixes dtypes: encoder/final_norm/bias is bfloat16, soft_"):
        convert_weights(weights, str(tmp_path / "new"), "hf")
    convert_weights(weights.cast(FLOAT32), str(tmp_path / "new"), "hf")
