"""Folders of the gemma library: the arrays of FLAT by name, made, written and read here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from gemma_train.conversion.tensors import Tensor, Weights
from gemma_train.model import GemmaConfig
from tests.conversion.test_names import PUBLISHED, config_of, of_generation

FLOAT32 = np.dtype(np.float32)
# Sizes whose gate and up the library keeps as [2, d, f]; of all others as [2, f, d].
WIDE = {"GEMMA1_2B", "GEMMA1_7B", "GEMMA2_2B"}

Tree = dict[str, dict]


def flat(generation, layers, width, heads, groups, head, hidden, rows, wide) -> Tree:
    """The shape of every array of a FLAT folder, as google-deepmind/gemma nests it."""
    attention = {
        "attn/q_einsum": {"w": (heads, width, head)},
        "attn/kv_einsum": {"w": (2, groups, width, head)},
    }
    if heads == groups:
        attention = {"attn/qkv_einsum": {"w": (3, heads, width, head)}}
    layer = {
        **attention,
        "attn/attn_vec_einsum": {"w": (heads, head, width)},
        "mlp/gating_einsum": {"w": (2, width, hidden) if wide else (2, hidden, width)},
        "mlp/linear": {"w": (hidden, width)},
        "pre_attention_norm": {"scale": (width,)},
        "pre_ffw_norm": {"scale": (width,)},
    }
    if generation >= 2:
        layer |= {"post_attention_norm": {"scale": (width,)}, "post_ffw_norm": {"scale": (width,)}}
    if generation == 3:
        layer |= {"attn/_query_norm": {"scale": (head,)}, "attn/_key_norm": {"scale": (head,)}}
    tree = {
        "transformer/embedder": {"input_embedding": (rows, width)},
        "transformer/final_norm": {"scale": (width,)},
    }
    for number in range(layers):
        tree |= {f"transformer/layer_{number}/{name}": layer[name] for name in layer}
    return tree


def flat_of(config: GemmaConfig, name: str, rows: int | None = None) -> Tree:
    """The same of a config that was made of the published one of this name."""
    heads = config.query_heads, config.key_value_heads, config.head_dimension
    sizes = config.layers, config.width, *heads, config.hidden, rows or config.vocabulary
    return flat(of_generation(name), *sizes, name in WIDE)


def library_shapes(name: str) -> Tree:
    """What the library's folder of a published size holds: with its rows of padding."""
    *sizes, rows, _ = PUBLISHED[name]
    return flat(of_generation(name), *sizes, 256_128 if rows == 256_000 else rows, name in WIDE)


def joined(tree: Tree) -> dict:
    """The leaves by their path: its names joined by '/'."""
    return {
        f"{name}/{rest}".removesuffix("/"): leaf
        for name, branch in tree.items()
        for rest, leaf in (joined(branch).items() if isinstance(branch, dict) else [("", branch)])
    }


def nested(leaves: dict) -> Tree:
    """The inverse of `joined`: a level for each name in the path."""
    tree: Tree = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = leaf
    return tree


def filled(shapes: Tree, dtype: np.dtype = FLOAT32) -> Tree:
    """Random arrays of these shapes."""
    random = np.random.default_rng(0)
    return {
        name: {
            last: random.standard_normal(shape, np.float32).astype(dtype)
            for last, shape in leaves.items()
        }
        for name, leaves in shapes.items()
    }


def save(folder: Path, tree: Tree) -> str:
    """Write a folder as `gm.ckpts.save_params` does."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return str(folder)


def restored(folder: str | Path) -> Tree:
    """Read a folder as the first releases of the library did."""
    return ocp.PyTreeCheckpointer().restore(folder)


def bits(tree: Tree) -> dict:
    return {n: (str(a.dtype), a.shape, a.tobytes()) for n, a in joined(tree).items()}


def read(weights: Weights) -> Tree:
    return {name: tensor.read() for name, tensor in weights.tensors.items()}


def in_memory(weights: Weights) -> Weights:
    arrays = read(weights)
    tensors = {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}
    return replace(weights, tensors=tensors)


def miniature(name: str, **changes) -> GemmaConfig:
    """A size with its heads, but narrow and shallow; where its pattern is longer, it is cut."""
    size = config_of(name)
    layers = {"GEMMA1_2B": 1, "GEMMA1_7B": 2}.get(name, 3)
    pattern = size.pattern[-2:]
    # transformers wants a width that the heads divide.
    small = {"vocabulary": 30, "width": 32, "head_dimension": 6, "hidden": 14, "window": None}
    small |= {"window": 4} if size.window else {}
    small |= {"query_scale": size.query_scale and 32 / size.query_heads}
    return replace(size, **{"layers": layers, "pattern": pattern, **small, **changes})


# Of a size whose pattern of three the layers cut: types 0 and 1 have two layers, type 2 has one.
CUT = miniature("GEMMA3_4B", layers=5, pattern=("local", "local", "global"))
