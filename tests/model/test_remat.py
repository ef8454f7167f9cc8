"""What a remat policy recomputes, counted in the step's own products."""

import math
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import Literal
from jax.sharding import reshard

from gemma_train.axes import activation
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.model.config import SAVABLE
from gemma_train.model.remat import products, recomputed_flops_per_token

ROWS, LENGTH = 2, 128  # a lane of the kernel
GEMMA3 = GemmaConfig(
    vocabulary=32,
    width=24,
    layers=5,
    query_heads=4,
    key_value_heads=2,
    head_dimension=16,
    hidden=40,
    context=LENGTH,
    pattern=("local", "global"),
    window=32,
    query_key_norm=True,
    post_norms=True,
)
GEMMA1 = replace(GEMMA3, pattern=("global",), query_key_norm=False, post_norms=False)
# With the kernel: its backward pass reads its output, where XLA's forms need all scores again.
COMPUTE = ComputeConfig(dtype="float32", attention="splash", remat="none")


def counted_in(jaxpr, times: int = 1) -> Counter:
    """FLOPs of the matrix products of a program, and how often it calls the attention kernel."""
    found: Counter = Counter()
    for equation in read_equations(jaxpr):
        repeated = times * equation.params.get("length", 1)
        match equation.primitive.name:
            case "dot_general":
                summed, _ = equation.params["dimension_numbers"][0]
                depth = math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
                made = math.prod(equation.outvars[0].aval.shape)
                found["flops"] += times * 2 * depth * made if depth > 1 else 0  # 1: kernels.scaled
            case "pallas_call":
                found["kernels"] += times
            case _:
                for inner in programs_in(tuple(equation.params.values())):
                    found += counted_in(inner, repeated)
    return found


def read_equations(jaxpr) -> list:
    """The equations of which something is read.

    jax 0.11.2 leaves others for XLA to remove: the kernel, where what it gave was kept.
    """
    found, wanted = [], {one for one in jaxpr.outvars if not isinstance(one, Literal)}
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted.update(one for one in equation.invars if not isinstance(one, Literal))
            found.append(equation)
    return found


def programs_in(value) -> list:
    """The jaxprs among the parameters of an equation."""
    if isinstance(value, tuple | list):
        return [program for one in value for program in programs_in(one)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def counted(config: GemmaConfig, compute: ComputeConfig, mesh_of) -> Counter:
    """The products of a loss and its gradient over ROWS rows."""
    return counted_in(gradient_of(config, compute, mesh_of))


def gradient_of(config: GemmaConfig, compute: ComputeConfig, mesh_of):
    """The program of a loss and its gradient over ROWS rows."""

    def loss(model, tokens_bt):
        positions_bt = jnp.broadcast_to(jnp.arange(LENGTH), tokens_bt.shape)
        inputs = (tokens_bt, positions_bt, jnp.ones_like(tokens_bt))
        return jnp.sum(model(*(reshard(x_bt, activation("bt")) for x_bt in inputs))[0])

    with mesh_of(data=2):
        model = nnx.eval_shape(lambda: Gemma(config, compute, nnx.Rngs(0)))
        tokens_bt = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
        return jax.make_jaxpr(jax.grad(loss))(model, tokens_bt).jaxpr


SUBSETS = [
    (),
    ("attention_output",),
    ("query", "gate"),  # parts of products, which are repeated whole
    ("attention_branch", "gate", "up", "feed_forward_branch"),
    tuple(name for name in SAVABLE if name != "value"),
    SAVABLE,
]


@pytest.mark.parametrize("config", [GEMMA3, GEMMA1], ids=["gemma3", "gemma1"])
@pytest.mark.parametrize("kept", SUBSETS, ids=lambda kept: "+".join(kept) or "nothing")
def test_the_recomputed_products_are_those_not_kept(config, kept, mesh_of):
    compute = replace(COMPUTE, remat="save_named", saved=kept)
    everything, found = (counted(config, one, mesh_of) for one in (COMPUTE, compute))
    scores = replace(compute, saved=(*kept, "attention_output"))
    expected = recomputed_flops_per_token(config, scores, LENGTH) * ROWS * LENGTH
    assert found["flops"] - everything["flops"] == expected
    again = 0 if "attention_output" in kept else config.layers
    assert found["kernels"] - everything["kernels"] == again


def test_full_recomputes_every_product_and_none_no_product(mesh_of):
    full = replace(COMPUTE, remat="full")
    assert counted(GEMMA3, full, mesh_of) == counted(
        GEMMA3, replace(full, remat="save_named", saved=()), mesh_of
    )
    assert recomputed_flops_per_token(GEMMA3, COMPUTE, LENGTH) == 0
    assert recomputed_flops_per_token(GEMMA3, full, LENGTH) == sum(
        one.flops for one in products(GEMMA3, LENGTH)
    )


def moved_in(jaxpr) -> list:
    """The types of what a program moves to the host's memory, and back."""
    return [
        found
        for equation in jaxpr.eqns
        for found in (
            [variable.aval for variable in equation.invars]
            if equation.primitive.name == "device_put"
            else [
                one
                for inner in programs_in(tuple(equation.params.values()))
                for one in moved_in(inner)
            ]
        )
    ]


def test_what_goes_to_the_host_are_the_products_and_no_statistics(mesh_of):
    compute = replace(COMPUTE, dtype="bfloat16", remat="save_named", saved=())
    offloaded = replace(compute, offloaded=("attention_output", "gate"))
    moved = moved_in(gradient_of(GEMMA3, offloaded, mesh_of))
    assert {(one.dtype.name, one.shape[-1]) for one in moved} == {
        ("bfloat16", GEMMA3.head_dimension),
        ("bfloat16", GEMMA3.hidden),
    }
    kept = replace(compute, saved=offloaded.offloaded)
    assert counted(GEMMA3, offloaded, mesh_of) == counted(GEMMA3, kept, mesh_of)


def test_every_product_of_a_layer_can_be_kept():
    assert {name for one in products(GEMMA3, LENGTH) for name in one.elements} == set(SAVABLE)
