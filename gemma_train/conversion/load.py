"""Weights of any format: opened, converted, or loaded as a model that computes."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import jax
import numpy as np
from flax import nnx

from gemma_train import storage
from gemma_train.config import differences
from gemma_train.conversion import gemma_orbax, huggingface, run_folder
from gemma_train.conversion.mapping import from_ours
from gemma_train.conversion.names import Format
from gemma_train.conversion.tensors import Tensor, Weights, stacked, unstacked
from gemma_train.errors import UserError, require
from gemma_train.leaves import by_path, from_paths
from gemma_train.mesh import MeshConfig, make_mesh
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.placement import abstract


def open_weights(path: str, expected: GemmaConfig | None = None) -> Weights:
    """The model in a Hugging Face, gemma or run folder, nothing read yet but its config.

    `expected` is needed for gemma folders of unpublished sizes and for unusual bases of RoPE.
    Raises `UserError` for whatever is not such a folder, or not whole.
    """
    folder = storage.existing(path, "model folder")
    require(
        folder.is_dir(),
        f"{path!r} is a file: name a Hugging Face folder, a gemma Orbax folder or a run",
    )
    if run_folder.is_folder(folder):
        weights = run_folder.read(folder)
    elif huggingface.is_folder(folder):
        weights = huggingface.read(folder, expected)
    elif gemma_orbax.is_folder(folder):
        weights = gemma_orbax.read(folder, expected)
    else:
        raise UserError(
            f"{path!r} holds no model: neither config.json (Hugging Face), nor an Orbax checkpoint "
            "(gemma), nor the config.py of a run"
        )
    return weights


def load_model(
    path: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    config: GemmaConfig | None = None,
) -> Gemma:
    """The model in a Hugging Face folder, a gemma Orbax folder or a run, parameters in `dtype`.

    It computes in that dtype too, on the mesh in force, or else on the first device. `config` is
    needed where a folder does not tell it (see `open_weights`). Raises `UserError`.
    """
    weights = open_weights(path, config)
    empty = jax.sharding.get_abstract_mesh().empty
    mesh = jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) if empty else nullcontext()
    with mesh:
        return place(weights, ComputeConfig(dtype=dtype, remat="none"), dtype)


def import_model(path: str, config: GemmaConfig, compute: ComputeConfig) -> Gemma:
    """The model of a folder as a run trains it: this config, float32, on the mesh in force.

    Raises `UserError` where the folder's model differs in anything but the longest context.
    """
    weights = open_weights(path, config)
    found = differences(replace(weights.config, context=config.context), config, "model")
    if found:
        raise UserError(
            f"initial_weights {path!r} hold another model than the run's ({'; '.join(found[:3])}): "
            "make model agree"
        )
    return place(replace(weights, config=config), compute)


def place(
    weights: Weights, compute: ComputeConfig, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Gemma:
    """The model on the mesh in force, parameters in `dtype`; one leaf at a time in host memory."""
    _ = weights.dtype  # a mixture is refused
    like = abstract(lambda: Gemma(weights.config, compute, nnx.Rngs(0)))
    like = jax.tree.map(lambda leaf: leaf.update(dtype=dtype), like)
    if weights.step is not None:
        return run_folder.restore(storage.path(weights.source), weights.step, like)
    leaves = stacked(weights.parameters, weights.config)
    return from_paths(
        {name: _put(leaves[name], leaf) for name, leaf in by_path(like).items()}, like
    )


def named(model: Gemma, format: Format) -> dict[str, np.ndarray]:
    """A model's parameters, or its gradient, by the names and in the shapes of a format.

    For comparison with other programs; all of it comes into host memory.
    """
    leaves = {
        name: Tensor(leaf.shape, np.dtype(leaf.dtype), lambda leaf=leaf: np.asarray(leaf))
        for name, leaf in model.parameters().items()
    }
    ours = unstacked(leaves, model.config)
    return {name: t.read() for name, t in from_ours(ours, model.config, format).items()}


def _put(tensor: Tensor, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    array = tensor.read()
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: array[index].astype(leaf.dtype)
    )
