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
class Product:
    """What one product of a layer makes, summed over all layers, per token."""

    elements: dict[str, int]  # numbers, in the compute dtype, of each name that can be kept
    flops: float  # to compute it again, where any of its names is not kept


def products(config: GemmaConfig, length: int) -> list[Product]:
    """The products that the backward pass reads, for rows of `length` tokens.

    Queries, keys and values are one product, and so are gate and up (kernels/contraction.py); on a
    single device, where they are apart, fewer FLOPs than these are repeated.
    """
    width, hidden, layers = config.width, config.hidden, config.layers
    query = config.query_heads * config.head_dimension
    key = config.key_value_heads * config.head_dimension

    def product(given: int, **made: int) -> Product:
        elements = {name: layers * size for name, size in made.items()}
        return Product(elements=elements, flops=2.0 * given * sum(elements.values()))

    found = [
        product(width, query=query, key=key, value=key),
        Product(
            elements={"attention_output": layers * query},
            flops=attention_flops_per_token(config, length),
        ),
        product(query, attention_branch=width),
        product(width, gate=hidden, up=hidden),
    ]
    if config.post_norms:  # the norm after the branch reads it
        found.append(product(hidden, feed_forward_branch=width))
    return found


def recomputed_flops_per_token(config: GemmaConfig, compute: ComputeConfig, length: int) -> float:
    """FLOPs of one step that repeat a forward product, per token of a row of `length` tokens."""
    if compute.remat == "none":
        return 0.0
    kept = set(compute.kept if compute.remat == "save_named" else ())
    return sum(one.flops for one in products(config, length) if not kept.issuperset(one.elements))


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
            policy = _with_statistics_kept(
                policies.save_and_offload_only_these_names(
                    names_which_can_be_saved=list(compute.saved),
                    names_which_can_be_offloaded=list(compute.offloaded),
                    offload_src="device",
                    offload_dst="pinned_host",
                ),
                compute,
            )
        case "save_named":
            policy = policies.save_only_these_names(*compute.saved)
    return jax.checkpoint(run, policy=policy)


def _with_statistics_kept(policy: Callable, compute: ComputeConfig) -> Callable:
    """The policy with what is to be offloaded, but is not in the compute dtype, kept on the device.

    That is attention's float32 number for each head and token, beside its output. libtpu 0.0.52
    does not compile a scan within a scan that brings it back from the host.
    """

    def kept_or(primitive, *types, **parameters):
        is_statistic = types and types[0].dtype != compute.dtype
        offloaded = parameters.get("name") in compute.offloaded
        return True if offloaded and is_statistic else policy(primitive, *types, **parameters)

    return kept_or
