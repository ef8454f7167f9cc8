"""From Hugging Face's tensors to our parameters and back: names, shapes, values and refusals."""

import math
import weakref
from collections import Counter
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from gemma_train.conversion.mapping import from_ours, to_ours
from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import BFLOAT16, Tensor, stacked, unstacked
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from tests.conversion.test_names import (
    PUBLISHED,
    config_of,
    miniature,
    of_generation,
    published,
    shapes_in,
)

ROW_OF_HEADS = {"query": "q", "key": "k", "value": "v"}


def unread(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """Tensors of these shapes that must not be read."""

    def read():
        raise AssertionError("read too early")

    return {name: Tensor(shape, BFLOAT16, read) for name, shape in shapes.items()}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def made(config: GemmaConfig, generation: int) -> dict[str, np.ndarray]:
    """Hugging Face's tensors of a model, each value another."""
    start = 0
    tensors = {}
    for name, shape in shapes_in(config, generation).items():
        count = math.prod(shape)
        tensors[name] = np.arange(start, start + count, dtype=np.float32).reshape(shape)
        start += count
    assert start < 2**24  # all of them exact
    return tensors


def lazy(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_leaf_of_the_model_comes_from_the_tensors_and_goes_back_to_them(name):
    config, theirs = config_of(name), unread(published(name))
    ours = to_ours(theirs, config, "hf", source="folder")
    model = nnx.eval_shape(lambda: Gemma(config, ComputeConfig(), nnx.Rngs(0)))
    leaves = {path: leaf.shape for path, leaf in by_path(model).items()}
    assert shapes_of(stacked(ours, config)) == leaves
    assert sum(map(math.prod, leaves.values())) == PUBLISHED[name][-1]
    assert shapes_of(from_ours(ours, config, "hf")) == shapes_of(theirs)
    assert shapes_of(unstacked(stacked(ours, config), config)) == shapes_of(ours)


@pytest.mark.parametrize("name", ["GEMMA1_2B", "GEMMA1_7B", "GEMMA2_9B", "GEMMA3_1B"])
def test_matrices_are_transposed_and_their_heads_taken_apart(name):
    config = miniature(name)
    theirs = made(config, of_generation(name))
    ours = to_ours(lazy(theirs), config, "hf", source="folder")
    h = config.head_dimension
    for layer in (0, config.layers - 1):
        us, they = f"layers/{layer}/", f"model.layers.{layer}."
        for part, letter in ROW_OF_HEADS.items():
            matrix = ours[f"{us}attention/{part}"].read()
            rows = theirs[f"{they}self_attn.{letter}_proj.weight"]
            assert matrix.shape[1] * h == len(rows)
            for head in range(matrix.shape[1]):
                for j in range(h):
                    assert (matrix[:, head, j] == rows[head * h + j]).all()
        output = ours[f"{us}attention/output"].read()
        columns = theirs[f"{they}self_attn.o_proj.weight"]
        for head in range(config.query_heads):
            for j in range(h):
                assert (output[head, j] == columns[:, head * h + j]).all()
        for part in ("gate", "up", "down"):
            matrix = ours[f"{us}feed_forward/{part}"].read()
            assert (matrix == theirs[f"{they}mlp.{part}_proj.weight"].T).all()
    assert (ours["embedding/table"].read() == theirs["model.embed_tokens.weight"]).all()
    assert (ours["final_norm"].read() == theirs["model.norm.weight"]).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_values_come_back(name):
    config = miniature(name)
    theirs = made(config, of_generation(name))
    ours = to_ours(lazy(theirs), config, "hf", source="folder")
    back = from_ours(unstacked(stacked(ours, config), config), config, "hf")
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), theirs[key], strict=True, err_msg=key)


def test_an_export_reads_each_stacked_leaf_once_and_holds_no_other_meanwhile():
    config = miniature("GEMMA3_1B")
    ours = to_ours(lazy(made(config, 3)), config, "hf", source="folder")
    reads, given = Counter(), []

    def counted(name: str, leaf: Tensor) -> Tensor:
        def read():
            reads[name] += 1
            array = leaf.read().copy()
            given.append(weakref.ref(array))
            return array

        return Tensor(leaf.shape, leaf.dtype, read)

    leaves = {name: counted(name, leaf) for name, leaf in stacked(ours, config).items()}
    for tensor in from_ours(unstacked(leaves, config), config, "hf").values():
        tensor.read()
        assert sum(array() is not None for array in given) <= 1
    assert reads == dict.fromkeys(leaves, 1)


@pytest.mark.parametrize("format", ["hf", "gemma", "gguf"])
def test_a_parameter_that_a_format_has_no_place_for_is_not_left_out_in_silence(format):
    config = miniature("GEMMA3_1B")
    ours = to_ours(lazy(made(config, 3)), config, "hf", source="folder")
    ours["soft_tokens/projection"] = ours["final_norm"]
    with pytest.raises(UserError, match="'soft_tokens/projection'.* without a place in format"):
        from_ours(ours, config, format)


def test_only_the_first_of_missing_tensors_is_named_and_the_others_counted():
    theirs = unread(published("GEMMA2_2B"))
    del theirs["model.layers.7.mlp.up_proj.weight"]
    line = r"^folder: tensor 'model\.layers\.7\.mlp\.up_proj\.weight' is missing$"
    with pytest.raises(UserError, match=line):
        to_ours(theirs, config_of("GEMMA2_2B"), "hf", source="folder")
    del theirs["model.norm.weight"]
    with pytest.raises(UserError, match=r"tensor 'model\.norm\.weight' \(and 1 more\) are missing"):
        to_ours(theirs, config_of("GEMMA2_2B"), "hf", source="folder")


@pytest.mark.parametrize("name", ["model.layers.26.mlp.up_proj.weight", "model.norm.bias"])
def test_an_unexpected_tensor_is_named(name):
    theirs = unread({**published("GEMMA2_2B"), name: (4,)})
    line = f"^folder: tensor '{name}' is unexpected in this model$"
    with pytest.raises(UserError, match=line):
        to_ours(theirs, config_of("GEMMA2_2B"), "hf", source="folder")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.3.self_attn.k_proj.weight", (2304, 1024), "(1024, 2304)"),
        ("model.norm.weight", (2305,), "(2304,)"),
        ("model.norm.weight", (2304, 1), "(2304,)"),
        ("model.embed_tokens.weight", (256_128, 2304), "(256000, 2304)"),
        ("model.embed_tokens.weight", (), "(256000, 2304)"),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(name, shape, expected):
    theirs = unread({**published("GEMMA2_2B"), name: shape})
    with pytest.raises(UserError) as refusal:
        to_ours(theirs, config_of("GEMMA2_2B"), "hf", source="folder")
    assert str(refusal.value) == (
        f"folder: tensor {name!r} has shape {shape}, but this model's is {expected}"
    )


def test_padded_rows_are_kept_apart_and_put_back():
    config = replace(miniature("GEMMA3_1B"), vocabulary=262_144, width=2)
    theirs = made(config, 3)
    rows = np.arange(262_208 * 2, dtype=np.float32).reshape(-1, 2)
    theirs["model.embed_tokens.weight"] = rows
    ours = to_ours(lazy(theirs), config, "hf", source="folder")
    assert (ours["embedding/table"].read() == rows[:262_144]).all()
    assert (ours[PADDING].read() == rows[262_144:]).all()
    assert ours["embedding/table"].shape == (262_144, 2)
    assert (from_ours(ours, config, "hf")["model.embed_tokens.weight"].read() == rows).all()


def test_rows_that_another_format_pads_are_no_part_of_a_hugging_face_table():
    config = replace(miniature("GEMMA2_2B"), vocabulary=256_000, width=2)
    ours = to_ours(lazy(made(config, 2)), config, "hf", source="folder")
    ours |= unread({PADDING: (128, 2)})
    assert from_ours(ours, config, "hf")["model.embed_tokens.weight"].shape == (256_000, 2)


def test_bfloat16_is_not_taken_through_another_dtype():
    config = miniature("GEMMA1_2B")
    bits = np.arange(config.width, dtype=np.uint16) + 0x7F81  # infinities' neighbours: all NaN
    theirs = lazy({n: a.astype(BFLOAT16) for n, a in made(config, 1).items()})
    theirs["model.norm.weight"] = Tensor((config.width,), BFLOAT16, lambda: bits.view(BFLOAT16))
    ours = to_ours(theirs, config, "hf", source="folder")
    back = from_ours(ours, config, "hf")["model.norm.weight"].read()
    assert back.dtype == ml_dtypes.bfloat16
    assert (back.view(np.uint16) == bits).all()
