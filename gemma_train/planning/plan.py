"""A plan: everything that is known of a run before it starts, as one value to print and to keep."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from gemma_train.config import RunConfig
from gemma_train.mesh import make_mesh
from gemma_train.model.flops import parameter_count, training_flops_per_token
from gemma_train.planning.attention_traffic import AttentionTraffic, attention_traffic
from gemma_train.planning.collectives import Total, collectives, totals
from gemma_train.planning.compiled import Compiled, TooLarge, compile_step
from gemma_train.planning.cost import Cost, CostConfig, cost, watts
from gemma_train.planning.estimate import (
    Assumptions,
    Estimate,
    estimate_step,
    recomputed_flops,
    target_flops,
    teacher_flops,
)
from gemma_train.planning.fitting import Change, changes_that_fit
from gemma_train.planning.gates import Gate, gates
from gemma_train.planning.memory import StateBytes, activation_bytes, state_bytes
from gemma_train.planning.slices import Slices
from gemma_train.planning.topology import devices
from gemma_train.planning.traffic import Traffic, compiled_traffic, expected_traffic


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one chip."""

    source: Literal["compiled", "refused", "modelled"]  # who says the peak
    state: StateBytes
    peak_bytes: int  # of a refused step: at least
    usable_bytes: int
    hbm_bytes: int

    @property
    def activation_bytes(self) -> int:
        """Everything that is not state: activations, gathered weights, logits."""
        return max(self.peak_bytes - self.state.total, 0)

    @property
    def over_bytes(self) -> int:
        """By how much it does not fit; 0 or less if it fits."""
        return self.peak_bytes - self.usable_bytes

    @property
    def fits(self) -> bool:
        return self.source != "refused" and self.over_bytes <= 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one run on one set of slices."""

    name: str
    config: RunConfig
    slices: Slices
    parameters: int
    flops_per_token: float  # of the model, local windows counted as such
    recomputed_flops_per_token: float
    teacher_flops_per_token: float  # of its forward pass, where it runs in the step
    memory: Memory
    compile_seconds: float | None
    collectives: list[Total] | None  # None without a compiled program that can be read
    gates: list[Gate] | None  # the same
    traffic: Traffic
    attention: AttentionTraffic
    estimate: Estimate
    assume: Assumptions
    cost: Cost
    cost_inputs: CostConfig
    changes: list[Change]  # that would make it fit, where it does not

    @property
    def unread(self) -> bool:
        """Whether there is a compiled program whose collectives could not be read."""
        return self.memory.source == "compiled" and self.collectives is None

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.config.steps * self.config.step_tokens


def compile_for(config: RunConfig, slices: Slices) -> Compiled | TooLarge:
    """The real step on the real compiler. Raises `NoCompiler` where there is none."""
    return compile_step(config, make_mesh(config.mesh, devices(slices)))


def make_plan(
    config: RunConfig,
    compiled: Compiled | TooLarge | None,
    *,
    slices: Slices,
    name: str,
    assume: Assumptions,
    cost_inputs: CostConfig,
) -> Plan:
    """The plan of `config`, from what the compiler found or, with None, from counting alone."""
    slices.check(config.mesh)
    memory = _memory(config, slices, compiled)
    found, held = _read(config, slices, compiled) or (None, None)
    traffic = expected_traffic(config, memory.state)
    if found is not None:
        traffic = compiled_traffic(found, host_bytes=traffic.host_bytes)
    estimate = estimate_step(
        config,
        slices,
        memory.state,
        traffic,
        assume=assume,
    )
    return Plan(
        name=name,
        config=config,
        slices=slices,
        parameters=parameter_count(config.model),
        flops_per_token=training_flops_per_token(config.model, config.data.sequence_length),
        recomputed_flops_per_token=recomputed_flops(config),
        teacher_flops_per_token=teacher_flops(config),
        memory=memory,
        compile_seconds=compiled.seconds if compiled else None,
        collectives=found,
        gates=held,
        traffic=traffic,
        attention=attention_traffic(config),
        estimate=estimate,
        assume=assume,
        cost=cost(slices, cost_inputs, steps=config.steps, step_seconds=estimate.step_seconds),
        cost_inputs=cost_inputs,
        changes=[]
        if memory.fits
        else changes_that_fit(config, memory.peak_bytes, memory.usable_bytes),
    )


def _read(
    config: RunConfig, slices: Slices, compiled: Compiled | TooLarge | None
) -> tuple[list[Total], list[Gate]] | None:
    """The collectives and the gates of a compiled program.

    None where there is none, and of a text that another libtpu writes in another way: its memory
    is known all the same.
    """
    if not isinstance(compiled, Compiled):
        return None
    try:
        found = totals(collectives(compiled.program, config.mesh.axis_sizes))
        return found, gates(config, slices, compiled)
    except (KeyError, StopIteration, ValueError):
        return None


def _memory(config: RunConfig, slices: Slices, compiled: Compiled | TooLarge | None) -> Memory:
    state = state_bytes(config)
    match compiled:
        case Compiled(peak_bytes=peak):
            source = "compiled"
        case TooLarge(needed_bytes=peak):
            source = "refused"
        case None:
            source, peak = "modelled", state.total + activation_bytes(config).peak
    return Memory(
        source=source,
        state=state,
        peak_bytes=peak,
        usable_bytes=slices.chip.usable_hbm_bytes,
        hbm_bytes=slices.chip.hbm_bytes,
    )


def assumptions(plan: Plan) -> list[str]:
    """What the figures of a plan rest on, a sentence each."""
    chip, assume, inputs = plan.slices.chip, plan.assume, plan.cost_inputs
    links = "two links (a ring, both ways)" if plan.slices.is_torus else "one link (no ring)"
    recomputed = plan.recomputed_flops_per_token / plan.flops_per_token
    power = "given" if inputs.chip_watts is not None else chip.watts_source
    network = "counted in the compiled program" if plan.collectives else "expected of the design"
    targets = target_flops(plan.config) / plan.flops_per_token
    return [
        f"a chip reaches {assume.compute_efficiency:.0%} of its peak while it computes, and "
        f"recomputes {recomputed:.0%} of the model's FLOPs",
        "attention's backward kernels compute scores again (7 products where the model counts 4) "
        "and visit whole blocks: neither is in the recomputed figure",
        *(
            [
                f"targets of {plan.config.candidates} candidates a token cost {targets:.1%} of the "
                "model's FLOPs, as products of one-hots"
            ]
            if targets
            else []
        ),
        f"network bytes are {network}; a collective runs over {links} of "
        f"{chip.link_bandwidth / 1e9:g} GB/s, or between slices with "
        f"{chip.network_bandwidth / 1e9:g} GB/s a chip",
        f"{assume.overlapped:.0%} of the networks' time passes beneath compute",
        f"HBM bytes are modelled, at {chip.hbm_bandwidth / 1e9:,.0f} GB/s",
        "steps follow each other at once: no evaluation, checkpoint or interruption",
        f"{watts(plan.slices, inputs):.0f} W a chip ({power}), PUE {inputs.pue:g}, "
        f"{inputs.grid:g} kg CO2 per kWh; hosts and switches left out",
    ]


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as JSON takes it, derived figures included."""
    memory = plan.memory
    return asdict(plan) | {
        "topology": plan.slices.name,
        "slices": plan.slices.count,
        "chip": asdict(plan.slices.chip),
        "chips": plan.slices.chips,
        "step_tokens": plan.config.step_tokens,
        "tokens": plan.tokens,
        "memory": asdict(memory)
        | {
            "activation_bytes": memory.activation_bytes,
            "over_bytes": memory.over_bytes,
            "fits": memory.fits,
        },
        "gates": None
        if plan.gates is None
        else [asdict(gate) | {"holds": gate.holds} for gate in plan.gates],
        "estimate": asdict(plan.estimate) | {"bound": plan.estimate.bound},
        "assumptions": assumptions(plan),
    }
