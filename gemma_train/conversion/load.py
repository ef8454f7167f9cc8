"""Weights of any format: opened, converted, or loaded as a model that computes."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from gemma_train import storage
from gemma_train.config import differences
from gemma_train.conversion import gemma_orbax, huggingface, run_folder
from gemma_train.conversion.mapping import from_ours
from gemma_train.conversion.tensors import Tensor, Weights, stacked, unstacked
from gemma_train.errors import UserError, require
from gemma_train.leaves import by_path, from_paths
from gemma_train.mesh import MeshConfig, make_mesh
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.placement import abstract


def open_weights(
    path: str, expected: GemmaConfig | None = None, step: int | None = None
) -> Weights:
    """The model in a Hugging Face, gemma or run folder, nothing read yet but its config.

    `expected` is needed for gemma folders of unpublished sizes and for unusual bases of RoPE; what
    the folder itself says must agree with it, but for the longest context. Of a run the newest
    checkpoint is taken, or that of `step`. Raises `UserError` for whatever is not such a folder, or
    not whole.
    """
    folder = storage.existing(path, "model folder")
    require(
        folder.is_dir(),
        f"{path!r} is a file: name a Hugging Face folder, a gemma Orbax folder or a run",
    )
    if run_folder.is_folder(folder):
        weights = run_folder.read(folder, step)
    elif step is not None:
        raise UserError(f"{path!r} is no run and has no step {step}: leave the step out")
    elif huggingface.is_folder(folder):
        weights = huggingface.read(folder, expected)
    elif gemma_orbax.is_folder(folder):
        weights = gemma_orbax.read(folder, expected)
    else:
        raise UserError(
            f"{path!r} holds no model: neither config.json (Hugging Face), nor an Orbax checkpoint "
            "(gemma), nor the config.py of a run"
        )
    if expected is not None:
        found = differences(_computed(weights.config), _computed(expected), "model")
        require(
            not found,
            f"{path!r} holds another model than the config ({'; '.join(found[:3])}): "
            "make the config agree with it",
        )
    return weights


def _computed(config: GemmaConfig) -> GemmaConfig:
    """The config with one value for all that compute the same."""
    scale = config.query_scale or config.head_dimension
    config = replace(config, context=1, pattern=config.kinds, query_scale=scale)
    if "local" not in config.kinds:
        config = replace(config, window=None, local_rope_base=1.0)
    if "global" not in config.kinds:
        config = replace(config, global_rope_base=1.0, global_rope_factor=1.0)
    return config


def load_model(
    path: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    config: GemmaConfig | None = None,
) -> Gemma:
    """The model in a Hugging Face folder, a gemma Orbax folder or a run, parameters in `dtype`.

    It computes in that dtype too, on the mesh in force, or else on this process's first device.
    `config` is needed where a folder does not tell it (see `open_weights`). Raises `UserError`.
    """
    require(dtype in ("float32", "bfloat16"), f"dtype is {dtype!r}: choose 'float32' or 'bfloat16'")
    weights = open_weights(path, config)
    empty, devices = jax.sharding.get_abstract_mesh().empty, jax.local_devices()[:1]
    with jax.set_mesh(make_mesh(MeshConfig(), devices)) if empty else nullcontext():
        return load(weights, ComputeConfig(dtype=dtype, remat="none"), dtype)


def load(
    weights: Weights,
    compute: ComputeConfig,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    whole: bool = False,
) -> Gemma:
    """The model on the mesh in force, parameters in `dtype`; one leaf at a time in host memory.

    Split by the rule or, if asked, `whole` on every device. A run's parameters go from its
    checkpoint to their devices; of other formats every process reads every tensor.
    """
    _ = weights.dtype  # a mixture is refused
    like = abstract(lambda: untrained(weights.config, compute, dtype, whole=whole))
    if weights.step is not None:
        return run_folder.restore(storage.path(weights.source), weights.step, like)
    leaves = stacked(weights.parameters, weights.config)
    return from_paths(
        {name: _put(leaves[name], leaf) for name, leaf in by_path(like).items()}, like
    )


def untrained(
    config: GemmaConfig,
    compute: ComputeConfig,
    dtype: Literal["float32", "bfloat16"] = "float32",
    *,
    whole: bool = False,
) -> Gemma:
    """The model that `load` would give, its parameters drawn: for their types."""

    def kept(leaf: jax.Array) -> jax.Array:
        leaf = leaf.astype(dtype)
        return reshard(leaf, PartitionSpec(*(None,) * leaf.ndim)) if whole else leaf

    return jax.tree.map(kept, Gemma(config, compute, nnx.Rngs(0)))


def named(model: Gemma, format: Literal["hf", "gemma"]) -> dict[str, np.ndarray]:
    """A model's parameters, or its gradient, by the names and in the shapes of a format.

    For comparison with other programs; all of it comes into host memory.
    """
    require(format in ("hf", "gemma"), f"format is {format!r}: choose 'hf' or 'gemma'")
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
