"""What a chip holds, counted without compiling: the state exactly, activations by a model of them.

The state's bytes come from its own shardings. The model counts what the step keeps through the
backward pass and the largest things that stand beside it at one time; it orders changes of a
config (fitting.py) and stands in where there is no compiler, whose peak is the truth.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from gemma_train.config import RunConfig
from gemma_train.model.config import GemmaConfig
from gemma_train.model.remat import products
from gemma_train.teachers.online import online, teacher_model, untrained_teacher
from gemma_train.teachers.stored import stored
from gemma_train.training.state import initial_state
from gemma_train.zero3 import split

FLOAT32, BFLOAT16, INT32 = 4, 2, 4
BYTES = {"float32": FLOAT32, "bfloat16": BFLOAT16}
TILE_ROWS = 8  # of a tile of 32-bit numbers


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes per chip of what is there in every step: exact."""

    parameters: int
    moments: int
    gradients: int
    teacher: int = 0  # parameters of one that runs in the step

    @property
    def total(self) -> int:
        return self.parameters + self.moments + self.gradients + self.teacher


@dataclass(frozen=True, kw_only=True)
class ActivationBytes:
    """Bytes per chip of what comes and goes in a step: estimated."""

    saved: int  # kept from forward to backward: the inputs of layers, or what remat lets stay
    layer: int  # a layer at work: recomputed activations, their gradients, float32 on the way
    weights: int  # gathered weights of a layer, of the next one, and the gradient
    logits: int  # a chunk of them, or the table's columns and gradient
    accumulator: int  # the sum over microbatches beside the gradient of one
    candidates: int = 0  # a teacher's, of a microbatch; a store's, of the step
    teacher: int = 0  # one that runs in the step, at work: a layer, or its logits

    @property
    def peak(self) -> int:
        """Layers and the loss take turns, and before them the teacher."""
        student = self.saved + max(self.layer + self.weights, self.logits)
        return self.accumulator + self.candidates + max(student, self.teacher)


def abstract_mesh(config: RunConfig) -> AbstractMesh:
    """The mesh of the run, of no devices in particular."""
    sizes = config.mesh.axis_sizes
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes)
    )


@functools.lru_cache(maxsize=256)  # fitting asks for many configs, some of them again
def state_bytes(config: RunConfig) -> StateBytes:
    """Parameters, moments and gradients as they lie on a chip of the run's mesh."""
    state = _state(config)
    parameters = _bytes(state.model)
    with jax.sharding.use_abstract_mesh(abstract_mesh(config)):
        teacher = jax.eval_shape(lambda: untrained_teacher(config))
    return StateBytes(
        parameters=parameters,
        moments=_bytes(state.moments),
        gradients=parameters,
        teacher=_bytes(teacher),
    )


def padded_gradient_bytes(config: RunConfig) -> int:
    """The gradients of a chip with the rows of every shard in whole tiles of TPUs.

    Rows are the last dimension but one, or the model width, which XLA may turn there.
    """
    total = 0
    for x in jax.tree.leaves(_state(config).model):
        shard = _shard_shape(x)
        rows = {
            axis
            for axis in range(len(shard))
            if axis == len(shard) - 2 or x.shape[axis] == config.model.width
        }
        size = math.prod(shard) * x.dtype.itemsize
        if len(shard) > 1:
            padded = (size // shard[axis] * _in_tiles(shard[axis]) for axis in rows)
            size = max(padded, default=size)
        total += size
    return total


def summed_scale_bytes(config: RunConfig) -> int:
    """The largest array of norms' gradients that is summed at one time (zero3.summed), of a chip.

    Over axes that do not split it a sum is a scatter and a gather, of parts of equal length.
    """
    sums: Counter[tuple] = Counter()
    for path, x in jax.tree.leaves_with_path(_state(config).model):
        if "norm" in jax.tree_util.keystr(path):
            shard = _shard_shape(x)
            parts = config.mesh.data * config.mesh.seq * shard[-1] // x.shape[-1]
            length = math.ceil(shard[-1] / parts) * parts
            sums[x.shape, x.sharding.spec] += math.prod(shard[:-1]) * length * x.dtype.itemsize
    return max(sums.values())


def _in_tiles(rows: int) -> int:
    return math.ceil(rows / TILE_ROWS) * TILE_ROWS


def _state(config: RunConfig) -> Any:
    """The types of the run's state, shardings included."""
    with jax.sharding.use_abstract_mesh(abstract_mesh(config)):
        return jax.eval_shape(lambda: initial_state(config))


def _bytes(tree: Any) -> int:
    return sum(math.prod(_shard_shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shard_shape(x: Any) -> tuple[int, ...]:
    """What of `x` a chip holds; a leaf without a sharding is a counter, whole on every chip."""
    return x.sharding.shard_shape(x.shape) if x.sharding else x.shape


def activation_bytes(config: RunConfig) -> ActivationBytes:
    """A model of the rest of the step's memory on a chip."""
    tokens, model = chip_tokens(config), config.model
    width, inside = config.compute.bytes, _inside(model)
    saved = model.layers * tokens * model.width * width  # the input of every layer
    match config.compute.remat:
        case "none":
            saved = model.layers * tokens * inside * width
        case "save_named":
            saved += kept_bytes(config, config.compute.saved)
    weights = layer_parameters(model) * width
    return ActivationBytes(
        saved=saved,
        layer=3 * tokens * inside * width,
        weights=3 * weights,
        logits=_logit_bytes(config, width),
        accumulator=state_bytes(config).gradients if config.accumulation > 1 else 0,
        candidates=_candidate_bytes(config),
        teacher=_teacher_bytes(config),
    )


def _inside(model: GemmaConfig) -> int:
    """Numbers a token that a layer makes on its way."""
    heads = (model.query_heads + 2 * model.key_value_heads) * model.head_dimension
    return 4 * model.width + 2 * heads + 4 * model.hidden


def stored_bytes(config: RunConfig) -> int:
    """Ids and weights that a store brings with a step's tokens of a chip; 0 without one."""
    return config.accumulation * _microbatch_bytes(config) if stored(config) else 0


def _candidate_bytes(config: RunConfig) -> int:
    """Ids and weights of a microbatch's tokens, and beside them a store's of the whole step."""
    if config.accumulation == 1:
        return _microbatch_bytes(config)
    return _microbatch_bytes(config) + stored_bytes(config)


def _microbatch_bytes(config: RunConfig) -> int:
    return chip_tokens(config) * config.candidates * (INT32 + FLOAT32)


def _teacher_bytes(config: RunConfig) -> int:
    """The forward pass of a teacher in the step: a layer and its weights, or a chunk of logits."""
    teacher, model = online(config), teacher_model(config)
    if teacher is None or model is None:
        return 0
    width, tokens = BYTES[teacher.dtype], chip_tokens(config)
    gathered = 2 * layer_parameters(model) * width if teacher.sharding == "split" else 0
    layer = tokens * (_inside(model) + model.width) * width + gathered
    parts = table_parts(config, model) if teacher.sharding == "split" else 1
    chunk = min(config.loss.chunk, tokens) * parts
    own_rows = model.vocabulary // parts
    # Logits, and with noise on them; the table's own rows, cast and their columns gathered.
    return max(layer, 2 * FLOAT32 * chunk * own_rows + own_rows * model.width * width)


def kept_bytes(config: RunConfig, names: Iterable[str]) -> int:
    """Bytes per chip of the products of these names, of all layers."""
    width = config.compute.bytes
    elements = {
        name: size
        for product in products(config.model, config.data.sequence_length)
        for name, size in product.elements.items()
    }
    return chip_tokens(config) * width * sum(elements.get(name, 0) for name in names)


def chip_tokens(config: RunConfig) -> int:
    """Tokens of a microbatch that one chip holds."""
    return config.step_tokens // config.accumulation // config.mesh.devices


def layer_parameters(model: GemmaConfig) -> int:
    """Parameters of the matrices of one layer."""
    heads = 2 * model.head_dimension * (model.query_heads + model.key_value_heads)
    return model.width * (heads + 3 * model.hidden)


def table_parts(config: RunConfig, model: GemmaConfig | None = None) -> int:
    """Over how many chips the rows of the embedding are split; of the run's model, or another."""
    sizes, model = config.mesh.axis_sizes, model or config.model
    shape = (model.vocabulary, model.width)
    rows = split("vd", shape, sizes).partitions[0] or ()
    return math.prod(sizes[axis] for axis in ((rows,) if isinstance(rows, str) else rows))


def _logit_bytes(config: RunConfig, width: int) -> int:
    """The vocabulary loss: a chunk's logits, softmax and soft targets, the table's own rows,
    their gradient.
    """
    model = config.model
    parts = table_parts(config)
    own_rows = model.vocabulary // parts
    chunk = min(config.loss.chunk, chip_tokens(config)) * parts
    logits = FLOAT32 + width + (FLOAT32 if config.candidates else 0)
    return chunk * own_rows * logits + own_rows * model.width * (FLOAT32 + width)
