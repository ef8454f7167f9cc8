"""What the backward pass finds kept of a layer, and what it computes again.

Each product of a layer has a name. A policy keeps the named ones in the device's memory, or moves
them to the host's; what is not kept is computed again from the layer's input. Norms, rotations and
gelu are always computed again: they cost memory traffic, not FLOPs that count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from gemma_train.model.config import ComputeConfig, GemmaConfig
from gemma_train.model.flops import attention_flops_per_token


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A product that can be kept: numbers per token, summed over all layers."""

    name: str
    elements: float  # in the compute dtype
    flops: float  # to compute it again, its own inputs being there


def activations(config: GemmaConfig, length: int) -> list[Activation]:
    """The products that the backward pass reads, for rows of `length` tokens."""
    width, hidden = config.width, config.hidden
    query = config.query_heads * config.head_dimension
    key = config.key_value_heads * config.head_dimension

    def product(name: str, given: int, made: int) -> Activation:
        return Activation(
            name=name,
            elements=config.layers * made,
            flops=config.layers * 2.0 * given * made,
        )

    products = [
        product("query", width, query),
        product("key", width, key),
        product("value", width, key),
        Activation(
            name="attention_output",
            elements=config.layers * query,
            flops=attention_flops_per_token(config, length),
        ),
        product("attention_branch", query, width),
        product("gate", width, hidden),
        product("up", width, hidden),
    ]
    if config.post_norms:  # the norm after the branch reads it
        products.append(product("feed_forward_branch", hidden, width))
    return products


def recomputed_flops_per_token(config: GemmaConfig, compute: ComputeConfig, length: int) -> float:
    """FLOPs of one step that repeat a forward product, per token of a row of `length` tokens."""
    if compute.remat == "none":
        return 0.0
    kept = compute.kept if compute.remat == "save_named" else ()
    return sum(one.flops for one in activations(config, length) if one.name not in kept)


def rematerialised(run: Callable, compute: ComputeConfig) -> Callable:
    """`run`, a layer, whose backward pass computes again what the policy does not keep.

    It does so behind a barrier, also in a scan: the layers of one repetition would otherwise be
    computed again all at once, ahead of their turn.
    """
    policies = jax.checkpoint_policies
    match compute.remat:
        case "none":
            return run
        case "full":
            policy = policies.nothing_saveable
        case "save_named" if compute.offloaded:
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=list(compute.saved),
                names_which_can_be_offloaded=list(compute.offloaded),
                offload_src="device",
                offload_dst="pinned_host",
            )
        case "save_named":
            policy = policies.save_only_these_names(*compute.saved)
    return jax.checkpoint(run, policy=policy)
