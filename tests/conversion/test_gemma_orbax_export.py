"""What is written for the gemma library: FLAT, every matrix turned by hand; and back again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.tensors import BFLOAT16, Tensor
from tests.conversion.gemma_folders import (
    FLOAT32,
    WIDE,
    Tree,
    bits,
    filled,
    flat_of,
    in_memory,
    joined,
    library_shapes,
    miniature,
    restored,
    save,
)
from tests.conversion.test_mapping import unread
from tests.conversion.test_names import PUBLISHED, config_of, hugging_face, published

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def by_hand(file: dict[str, np.ndarray], layers: int, heads: int, groups: int, wide: bool) -> Tree:
    """The FLAT arrays of Hugging Face's: each matrix turned by hand."""

    def heads_of(matrix: np.ndarray, count: int) -> np.ndarray:  # [(n h), d] -> [n, d, h]
        return matrix.reshape(count, -1, matrix.shape[1]).transpose(0, 2, 1)

    tree = {
        "transformer/embedder": {"input_embedding": file["model.embed_tokens.weight"]},
        "transformer/final_norm": {"scale": file["model.norm.weight"]},
    }
    gemma_1 = "model.layers.0.pre_feedforward_layernorm.weight" not in file
    names = {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "pre_ffw_norm"}
    if not gemma_1:
        names |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "pre_ffw_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    if "model.layers.0.self_attn.q_norm.weight" in file:
        names |= {"self_attn.q_norm": "attn/_query_norm", "self_attn.k_norm": "attn/_key_norm"}
    for number in range(layers):
        here = f"transformer/layer_{number}/"

        def theirs(name: str, number: int = number) -> np.ndarray:
            return file[f"model.layers.{number}.{name}.weight"]

        query = heads_of(theirs("self_attn.q_proj"), heads)
        key_value = [heads_of(theirs(f"self_attn.{part}_proj"), groups) for part in "kv"]
        if heads == groups:
            tree[here + "attn/qkv_einsum"] = {"w": np.stack([query, *key_value])}
        else:
            tree[here + "attn/q_einsum"] = {"w": query}
            tree[here + "attn/kv_einsum"] = {"w": np.stack(key_value)}
        output = theirs("self_attn.o_proj")
        tree[here + "attn/attn_vec_einsum"] = {"w": output.T.reshape(heads, -1, len(output))}
        gates = np.stack([theirs("mlp.gate_proj"), theirs("mlp.up_proj")])
        tree[here + "mlp/gating_einsum"] = {"w": gates.transpose(0, 2, 1) if wide else gates}
        tree[here + "mlp/linear"] = {"w": theirs("mlp.down_proj").T}
        tree |= {here + ours: {"scale": theirs(name)} for name, ours in names.items()}
    return tree


def hugging_face_file(name: str) -> dict[str, np.ndarray]:
    return {
        key: array
        for file in sorted((FIXTURES / name).glob("*.safetensors"))
        for key, array in load_file(file).items()
    }


# (fixture, query heads, key/value heads, layers)
MODELS = [
    ("gemma1_mqa", 4, 1, 2),
    ("gemma1_mha", 4, 4, 3),
    ("gemma2_gqa", 4, 2, 4),
    ("gemma3_long", 4, 2, 8),
    ("gemma3_mqa", 4, 1, 7),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_the_librarys_names_and_shapes(name):
    config = config_of(name)
    ours = to_ours(unread(published(name)), config, "hf", source="somewhere")
    theirs = from_ours(ours, config, "gemma")
    assert {n: tensor.shape for n, tensor in theirs.items()} == joined(library_shapes(name))


@pytest.mark.parametrize(("name", "heads", "groups", "layers"), MODELS)
def test_orbax_finds_every_matrix_turned_as_the_library_keeps_it(
    name, heads, groups, layers, tmp_path
):
    source = open_weights(str(FIXTURES / name))
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    wide = name.startswith("gemma1")
    expected = by_hand(hugging_face_file(name), layers, heads, groups, wide)
    found = restored(tmp_path / "flat")
    assert {n: set(leaves) for n, leaves in found.items()} == {
        n: set(leaves) for n, leaves in expected.items()
    }
    assert bits(found) == bits(expected)


def test_gate_and_up_of_gemma_2_2b_are_turned_and_of_9b_are_not():
    for name in ("GEMMA2_2B", "GEMMA2_9B"):
        config = replace(config_of(name), vocabulary=2, head_dimension=2, hidden=3)
        heads = config.query_heads, config.key_value_heads, 2
        shapes = hugging_face(2, config.layers, config.width, *heads, 3, 2)
        theirs = unread(shapes)
        gates = []
        for part in ("gate", "up"):
            key = f"model.layers.25.mlp.{part}_proj.weight"
            gates.append(np.random.default_rng(len(gates)).random(shapes[key], np.float32))
            theirs[key] = Tensor(shapes[key], FLOAT32, lambda gate=gates[-1]: gate)
        flat = from_ours(to_ours(theirs, config, "hf", source=""), config, "gemma")
        found = flat["transformer/layer_25/mlp/gating_einsum/w"].read()
        axes = (0, 2, 1) if name in WIDE else (0, 1, 2)
        np.testing.assert_array_equal(found, np.stack(gates).transpose(axes))


def test_the_library_restores_a_folder_by_its_metadata_as_jax_arrays(tmp_path):
    """Step by step what `gm.ckpts.load_params` does."""
    import jax

    source = open_weights(str(FIXTURES / "gemma1_mqa")).cast(BFLOAT16)
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    checkpointer = ocp.StandardCheckpointer()
    tree = checkpointer.metadata(tmp_path / "flat").item_metadata.tree
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
    found = checkpointer.restore(tmp_path / "flat", wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {BFLOAT16}
    assert bits(jax.tree.map(np.asarray, found)) == bits(restored(tmp_path / "flat"))


def test_a_folder_keeps_its_config_and_its_tokenizer(tmp_path, tokenizer_file):
    source = open_weights(str(FIXTURES / "gemma3_long"))
    source = replace(source, tokenizer=str(tokenizer_file))
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    found = open_weights(str(tmp_path / "flat"))
    assert found.config == source.config
    assert Path(found.tokenizer or "").read_bytes() == tokenizer_file.read_bytes()
    assert (found.format, found.left_out, found.step) == ("gemma", (), None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_of_every_size_comes_back_from_a_run_and_from_hugging_face(name, tmp_path):
    config = miniature(name)
    dtype = FLOAT32 if name in ("GEMMA1_7B", "GEMMA2_9B", "GEMMA3_1B") else BFLOAT16
    # By its width the miniature of Gemma 2 2B is none, and has its gates as the others do.
    given = filled(flat_of(config, "GEMMA2_9B" if name == "GEMMA2_2B" else name), dtype)
    source = in_memory(open_weights(save(tmp_path / "source", given), config))
    for format in ("run", "hf"):
        between, back = str(tmp_path / format), str(tmp_path / f"back_from_{format}")
        convert_weights(source, between, format)
        convert_weights(open_weights(between), back, "gemma")
        assert bits(restored(back)) == bits(given)
        assert open_weights(back).config == config


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, FLOAT32) for name, *_ in MODELS),
        ("gemma1_mha", BFLOAT16),
        ("gemma2_gqa", BFLOAT16),
    ],
    ids=str,
)
def test_hugging_faces_tensors_come_back(name, dtype, tmp_path):
    source = open_weights(str(FIXTURES / name)).cast(dtype)
    convert_weights(source, str(tmp_path / "flat"), "gemma")
    flat = open_weights(str(tmp_path / "flat"))
    convert_weights(flat, str(tmp_path / "hf"), "hf")
    given = {key: array.astype(dtype) for key, array in hugging_face_file(name).items()}
    assert bits(load_file(tmp_path / "hf" / "model.safetensors")) == bits(given)
    assert open_weights(str(tmp_path / "hf")).config == source.config


def test_rows_of_padding_pass_through_a_run_and_are_zeros_where_none_were_kept(tmp_path):
    narrow = {"width": 2, "query_heads": 2, "key_value_heads": 1}
    config = miniature("GEMMA2_9B", vocabulary=256_000, layers=1, **narrow)
    given = filled(flat_of(config, "GEMMA2_9B", 256_128))
    source = save(tmp_path / "source", given)
    for format in ("run", "hf"):
        convert_weights(open_weights(source, config), str(tmp_path / format), format)
        convert_weights(
            open_weights(str(tmp_path / format)), str(tmp_path / f"back_{format}"), "gemma"
        )
    assert load_model(str(tmp_path / "run")).embedding.table.shape == (256_000, 2)
    assert bits(restored(tmp_path / "back_run")) == bits(given)
    # transformers' table has the rows of the tokenizer.
    table = load_file(tmp_path / "hf" / "model.safetensors")["model.embed_tokens.weight"]
    assert table.shape == (256_000, 2)
    given["transformer/embedder"]["input_embedding"][256_000:] = 0
    assert bits(restored(tmp_path / "back_hf")) == bits(given)
