"""How long a step takes, by the roofline: the work over each resource's rate, and what overlaps.

An estimate, never a measurement. FLOPs are counted from the architecture, network bytes come from
the compiled program where there is one, HBM bytes from a model of the step. Published MFU of dense
models on TPU to hold it against: 55 to 72 % (README of AI-Hypercomputer/maxtext).
"""

from dataclasses import dataclass

from gemma_train.config import Distillation, RunConfig
from gemma_train.errors import UserError, require
from gemma_train.metrics.peak import model_flops_utilization, peak_flops
from gemma_train.model.config import GemmaConfig
from gemma_train.model.flops import forward_flops_per_token, training_flops_per_token
from gemma_train.model.remat import recomputed_flops_per_token
from gemma_train.planning.memory import BYTES, FLOAT32, StateBytes, layer_parameters
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import Traffic
from gemma_train.teachers.online import online, teacher_model


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the estimate of a step takes for granted."""

    compute_efficiency: float = 0.75  # of peak FLOP/s, reached while a chip computes
    overlapped: float = 0.5  # share of the networks' time that passes beneath compute

    def __post_init__(self) -> None:
        require(
            0.0 < self.compute_efficiency <= 1.0,
            f"assume.compute_efficiency is {self.compute_efficiency}: "
            "it must be above 0, and at most 1",
        )
        require(
            0.0 <= self.overlapped <= 1.0,
            f"assume.overlapped is {self.overlapped}: it must lie between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one step on every resource alone, and of the step."""

    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    dcn_seconds: float
    host_seconds: float
    step_seconds: float
    mfu: float

    @property
    def resources(self) -> dict[str, float]:
        """Seconds by the name of the resource."""
        return {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "ICI": self.ici_seconds,
            "DCN": self.dcn_seconds,
            "host": self.host_seconds,
        }

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.resources, key=lambda name: self.resources[name])


def estimate_step(
    config: RunConfig,
    slices: Slices,
    state: StateBytes,
    traffic: Traffic,
    *,
    assume: Assumptions,
) -> Estimate:
    """The roofline of one step of `config` on `slices`.

    Raises `UserError` where the chip has no published rate in the config's dtype.
    """
    chip = slices.chip
    peak = peak_flops(chip.device_kind, config.compute.dtype)
    if peak is None:
        raise UserError(
            f"compute.dtype is {config.compute.dtype}: no rate of {chip.generation} is published "
            "for it: plan with --compute.dtype bfloat16"
        )
    model_flops = training_flops_per_token(config.model, config.data.sequence_length)
    tokens = config.step_tokens / slices.chips
    model_flops += teacher_flops(config)
    compute = tokens * (model_flops + recomputed_flops(config) + target_flops(config))
    compute /= peak * assume.compute_efficiency
    hbm = hbm_bytes(config, state) / chip.hbm_bandwidth
    # A collective runs over one mesh axis, along one dimension of the torus: two links, where
    # they close to a ring.
    ici = traffic.ici_bytes / (chip.link_bandwidth * (2 if slices.is_torus else 1))
    dcn = traffic.dcn_bytes / chip.network_bandwidth
    host = traffic.host_bytes / chip.host_bandwidth
    networks = ici + dcn + host
    beneath = assume.overlapped * networks
    step = max(compute, hbm, beneath) + networks - beneath
    utilization = model_flops_utilization(
        model_flops * config.step_tokens / step, slices.chips, peak
    )
    return Estimate(
        compute_seconds=compute,
        hbm_seconds=hbm,
        ici_seconds=ici,
        dcn_seconds=dcn,
        host_seconds=host,
        step_seconds=step,
        mfu=utilization or 0.0,
    )


def inside(model: GemmaConfig) -> int:
    """Numbers a token that a layer's forward pass moves through memory."""
    heads = (2 * model.query_heads + 2 * model.key_value_heads) * model.head_dimension
    return 4 * model.width + heads + 3 * model.hidden


def recomputed_flops(config: RunConfig) -> float:
    """FLOPs a token that remat computes twice."""
    return recomputed_flops_per_token(config.model, config.compute, config.data.sequence_length)


def target_flops(config: RunConfig) -> float:
    """FLOPs a token of a teacher's targets: the one-hot products, and a second pass over logits."""
    vocabulary, width = config.model.vocabulary, config.model.width
    again = _loss_passes(config) - 1
    return 2.0 * config.candidates * vocabulary + again * 6.0 * vocabulary * width


def _loss_passes(config: RunConfig) -> int:
    return config.loss.passes if isinstance(config.loss, Distillation) else 1


def teacher_flops(config: RunConfig) -> float:
    """FLOPs a token of the forward pass of a teacher in the step."""
    model = teacher_model(config)
    return forward_flops_per_token(model, config.data.sequence_length) if model else 0.0


def hbm_bytes(config: RunConfig, state: StateBytes) -> float:
    """Bytes that a chip reads and writes in a step: a model, some tens of per cent right.

    The optimizer reads and writes the state; a layer's gathered weights are written twice, read
    three times, and their gradient comes and goes; what is inside a layer is written and read in
    the forward, the recomputed and (twice) the backward pass; logits likewise.
    """
    model, tokens = config.model, config.step_tokens / config.mesh.devices
    width = config.compute.bytes
    optimizer = 2 * (state.parameters + state.moments) + 3 * state.gradients
    weights = 7 * layer_parameters(model) * width * model.layers * config.accumulation
    passes = 6 if config.compute.remat == "none" else 8
    activations = passes * tokens * model.layers * inside(model) * width
    logits = tokens * model.vocabulary * (2 * FLOAT32 + 3 * width) * _loss_passes(config)
    if config.candidates:  # the target: written, its layout changed, read
        logits += tokens * model.vocabulary * 4 * FLOAT32
    return optimizer + weights + activations + logits + _teacher_hbm_bytes(config)


def _teacher_hbm_bytes(config: RunConfig) -> float:
    """A teacher's weights gathered and read, its activations and logits written and read."""
    teacher, model = online(config), teacher_model(config)
    if teacher is None or model is None:
        return 0.0
    width, tokens = BYTES[teacher.dtype], config.step_tokens / config.mesh.devices
    times = 1 if teacher.sharding == "whole" else 2
    weights = times * layer_parameters(model) * width * model.layers * config.accumulation
    activations = 2 * tokens * model.layers * inside(model) * width
    return weights + activations + tokens * model.vocabulary * 2 * FLOAT32
