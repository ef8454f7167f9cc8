"""What the TPU compiler makes of the look-up in a split table, and of its gradient."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.mesh import MeshConfig
from gemma_train.model.layers import Embedding
from gemma_train.model.weight import Declaration
from gemma_train.planning.collectives import collectives
from gemma_train.planning.program import read
from gemma_train.silence import silenced_standard_error

VOCABULARY, WIDTH = 65_536, 3840  # a chip's columns are no whole lanes of 128: 240
# Rows of the table are split over the second, its columns over the first.
MESHES = {"data and seq": {"data": 16, "seq": 16}, "two axes of data": {"data": 256}}


@pytest.mark.parametrize("axes", MESHES)
def test_the_gradient_of_the_table_is_scattered_not_summed_whole(axes, mesh_of_chips):
    config = MeshConfig(topology="v5e:16x16", **MESHES[axes])
    mesh = mesh_of_chips(config)
    sizes = {"v": VOCABULARY, "d": WIDTH}

    def array(letters: str, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, activation(letters)))

    def look_up(embedding, tokens_bt, cotangent_btd):
        x_btd, pull = jax.vjp(lambda one: one(tokens_bt, jnp.bfloat16), embedding)
        return x_btd, pull(cotangent_btd)

    with jax.set_mesh(mesh), silenced_standard_error():
        embedding = jax.eval_shape(lambda: Embedding(Declaration(sizes, nnx.Rngs(0))))
        arguments = (
            embedding,
            array("bt", (256, 256), jnp.int32),
            array("btd", (256, 256, WIDTH), jnp.bfloat16),
        )
        program = jax.jit(look_up).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    found = collectives(read(program.as_text()), config.axis_sizes)
    largest = {
        kind: max((one.full_bytes for one in found if one.kind == kind), default=0)
        for kind in ("all-reduce", "reduce-scatter")
    }
    table_of_columns = 2 * VOCABULARY * WIDTH // 16
    assert largest["all-reduce"] < 0.01 * table_of_columns
    assert table_of_columns <= largest["reduce-scatter"] < 1.1 * table_of_columns
