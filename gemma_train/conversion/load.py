"""Weights of any format: opened, converted, or loaded as a model that computes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from gemma_train import storage
from gemma_train.conversion import gemma_orbax, huggingface, run_folder
from gemma_train.conversion.mapping import from_ours
from gemma_train.conversion.tensors import (
    Tensor,
    Tensors,
    Weights,
    stacked,
    stacked_encoder,
    unstacked,
)
from gemma_train.drift import differences
from gemma_train.errors import UserError, require
from gemma_train.leaves import by_path, from_paths
from gemma_train.mesh import MeshConfig, make_mesh
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.model.siglip import Siglip
from gemma_train.placement import abstract
from gemma_train.vision import VisionConfig


def open_weights(
    path: str, expected: GemmaConfig | None = None, step: int | None = None
) -> Weights:
    """The model in a Hugging Face, gemma or run folder, nothing read yet but its config.

    `expected` is needed for gemma folders of unpublished sizes and for unusual bases of RoPE; what
    the folder itself says must agree with it, but for the longest context, and for images, which
    are left out if it has no `vision`. Of a run the newest checkpoint is taken, or that of `step`.
    Raises `UserError` for whatever is not such a folder, or not whole.
    """
    weights = _opened(path, expected, step)
    if expected is not None:
        _check_model(path, weights.config, expected)
    return weights


def open_beginning(path: str, model: GemmaConfig) -> Weights:
    """The same, for a run of `model` to begin from: weights of a shorter context as well.

    They are where the model's RoPE factor is larger than theirs, which is what `long_context`
    makes of a run. A longer context by itself, or a larger factor, is refused.
    """
    weights = _opened(path, model, None)
    found, factor = weights.config, model.global_rope_factor
    is_longer = model.context > found.context
    require(
        not is_longer or factor != found.global_rope_factor,
        f"model.context is {model.context}, but {path!r} was trained at {found.context} with the "
        f"same model.global_rope_factor, {factor:g}: lengthen the run by stages.long_context "
        "(docs/long_context.md)",
    )
    require(
        is_longer or factor <= found.global_rope_factor,
        f"model.global_rope_factor is {factor:g}, but {path!r} was trained with "
        f"{found.global_rope_factor:g} at a model.context of {found.context}, as long as this "
        "run's: lengthen the run by stages.long_context (docs/long_context.md)",
    )
    factor = max(factor, found.global_rope_factor)
    _check_model(path, replace(found, global_rope_factor=factor), model)
    return weights


def _opened(path: str, expected: GemmaConfig | None, step: int | None) -> Weights:
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
    if expected is not None and expected.vision is None and weights.config.vision is not None:
        weights = weights.text_alone()
    return weights


def _check_model(path: str, found: GemmaConfig, expected: GemmaConfig) -> None:
    different = list(differences(_computed(found), _computed(expected), "model").values())
    require(
        not different,
        f"{path!r} holds another model than the config ({'; '.join(different[:3])}): "
        "make the config agree with it",
    )


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
    One that sees images has its vision encoder beside it, where the folder has it. `config` is
    needed where a folder does not tell it (see `open_weights`). Raises `UserError`.
    """
    require(dtype in ("float32", "bfloat16"), f"dtype is {dtype!r}: choose 'float32' or 'bfloat16'")
    weights = open_weights(path, config)
    with some_mesh():
        model = load(weights, ComputeConfig(dtype=dtype, remat="none"), dtype)
        if weights.config.vision is not None and weights.encoder:
            model.encoder = load_siglip(weights.encoder, weights.config.vision, dtype)
        return model


@contextmanager
def some_mesh() -> Iterator[None]:
    """The mesh in force, or else one of this process's first device."""
    empty, devices = jax.sharding.get_abstract_mesh().empty, jax.local_devices()[:1]
    with jax.set_mesh(make_mesh(MeshConfig(), devices)) if empty else nullcontext():
        yield


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


def load_siglip(
    ours: Tensors, config: VisionConfig, dtype: Literal["float32", "bfloat16"]
) -> Siglip:
    """The encoder of these tensors, whole on every device of the mesh in force."""
    like = jax.eval_shape(lambda: Siglip(config, nnx.Rngs(0)))
    leaves, mesh = stacked_encoder(ours), jax.sharding.get_mesh()
    everywhere = jax.NamedSharding(mesh, PartitionSpec())
    placed = {
        name: _put(
            leaves[name], jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=everywhere)
        )
        for name, leaf in by_path(like).items()
    }
    return from_paths(placed, like)


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
