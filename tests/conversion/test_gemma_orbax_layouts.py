"""The gemma library's three layouts give the same weights, and what is no text is left out."""

import numpy as np
import pytest

from gemma_train.conversion.load import open_weights
from gemma_train.conversion.tensors import BFLOAT16
from tests.conversion.gemma_folders import (
    CUT,
    Tree,
    bits,
    filled,
    flat_of,
    joined,
    nested,
    read,
    save,
)

VISION = {
    "SigLiPFromPatches_0/siglip_encoder": {"pos_embedding": (1, 4, 3)},
    "SigLiPFromPatches_0/siglip_encoder/embedding": {"kernel": (2, 2, 3, 3), "bias": (3,)},
    "transformer/embedder/mm_input_projection": {"w": (3, 32)},
    "transformer/embedder/mm_soft_embedding_norm": {"scale": (3,)},
}


def as_nested(tree: Tree) -> Tree:
    """What `model.init` makes: no 'transformer', the feed-forward's leaves a level higher."""
    leaves = joined(tree)
    for old, new in (
        ("transformer/", ""),
        ("SigLiPFromPatches_0/", "vision_encoder/"),
        ("gating_einsum/w", "gating_einsum"),
        ("linear/w", "linear"),
    ):
        leaves = {name.replace(old, new): leaf for name, leaf in leaves.items()}
    return nested(leaves)


def as_stacked(tree: Tree, length: int, layers: int = CUT.layers) -> Tree:
    """Layers that stand in one place of the pattern as one array, by repetition."""
    stacked: Tree = {}
    for name, leaves in tree.items():
        if not name.startswith("transformer/layer_"):
            stacked[name] = leaves
            continue
        number, rest = name.removeprefix("transformer/layer_").split("/", 1)
        if int(number) < length:
            alike = [
                tree[f"transformer/layer_{layer}/{rest}"]
                for layer in range(int(number), layers, length)
            ]
            stacked[f"transformer/stacked_layers/attention_type_{number}/{rest}"] = {
                last: np.stack([one[last] for one in alike]) for last in leaves
            }
    return stacked


def deeper(tree: Tree) -> Tree:
    """A dump of post-training."""
    return {f"rlx_networks/policy_network/{name}": leaves for name, leaves in tree.items()}


@pytest.fixture(scope="module")
def text() -> Tree:
    return filled(flat_of(CUT, "GEMMA3_4B"), BFLOAT16)


@pytest.fixture(scope="module")
def from_flat(text, tmp_path_factory) -> dict[str, np.ndarray]:
    """Our parameters, read from FLAT."""
    return read(open_weights(save(tmp_path_factory.mktemp("flat") / "text", text), CUT))


LAYOUTS = {
    "NESTED": as_nested,
    "STACKED": lambda tree: as_stacked(tree, 3),
    "STACKED by another period": lambda tree: as_stacked(tree, 4),
    "deeper FLAT": deeper,
    "deeper STACKED, in folders": lambda tree: nested(joined(deeper(as_stacked(tree, 3)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout, text, from_flat, tmp_path):
    weights = open_weights(save(tmp_path / "other", LAYOUTS[layout](text)), CUT)
    assert weights.config == CUT and not weights.left_out
    assert bits(read(weights)) == bits(from_flat)


@pytest.mark.parametrize("layout", ["FLAT", *LAYOUTS])
def test_vision_and_projector_are_left_out_and_reported(layout, text, from_flat, tmp_path):
    tree = {**text, **filled(VISION)}
    tree["transformer/embedder"] = {
        **text["transformer/embedder"],
        "mm_output_embedding": np.zeros((2, 32), np.float32),
        "mm_input_embedding_extra": np.zeros((2, 32), np.float32),
    }
    tree = LAYOUTS[layout](tree) if layout in LAYOUTS else tree
    weights = open_weights(save(tmp_path / "multimodal", tree), CUT)
    not_text = ("mm_", "SigLiP", "vision_encoder")
    expected = {name for name in joined(tree) if any(part in name for part in not_text)}
    assert len(weights.left_out) == len(expected) == 7
    assert set(weights.left_out) == expected
    assert weights.dtype == BFLOAT16  # vision is float32
    assert weights.tensors.keys() == from_flat.keys()
