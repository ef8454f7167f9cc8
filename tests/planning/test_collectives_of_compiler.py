"""What programs move that the real TPU compiler made, where the answer is known by hand.

For slices of 16 chips of a TPU v5e; the compiler, libtpu, needs no chip.
"""

from dataclasses import replace

import pytest

from gemma_train.mesh import MeshConfig
from gemma_train.planning.collectives import Total, collectives, totals
from gemma_train.planning.program import reshapes_of

MIB = 2**20


def sixteen_chips(slices: int = 1) -> MeshConfig:
    """Of each slice."""
    return MeshConfig(replica=slices, data=16, topology="v5e:4x4", slices=slices)


LAYERS, WIDTH, HIDDEN = 7, 1024, 4096


@pytest.fixture(scope="module")
def gradient_of_layers(mesh_of_chips):
    """Compiles the gradient of a scan over layers of two split weights: (text, mesh's shape)."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from gemma_train.axes import activation
    from gemma_train.zero3 import gather, share, split

    @jax.checkpoint
    def layer(x_btd, weights):
        up_df, down_df = (gather(weight, jnp.bfloat16) for weight in weights)
        hidden_btf = jnp.tanh(jnp.einsum("btd,df->btf", x_btd, up_df))
        return x_btd + jnp.einsum("btf,df->btd", hidden_btf, down_df), None

    def loss(weights, x_btd):
        return jnp.sum(jax.lax.scan(layer, x_btd, jax.tree.map(share, weights))[0])

    def compile_for(slices: int) -> tuple[str, dict[str, int]]:
        mesh = mesh_of_chips(sixteen_chips(slices))
        with jax.set_mesh(mesh):
            shape = (LAYERS, WIDTH, HIDDEN)
            weight = jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=NamedSharding(mesh, split("ldf", shape, mesh.shape))
            )
            x_btd = jax.ShapeDtypeStruct(
                (16 * slices, 512, WIDTH),
                jnp.bfloat16,
                sharding=NamedSharding(mesh, activation("btd")),
            )
            compiled = jax.jit(jax.grad(loss)).lower((weight, weight), x_btd).compile()
        return compiled.as_text(), dict(mesh.shape)

    return compile_for


# Two hops: the width over four chips, then the hidden units over four; bfloat16.
BYTES_OF_A_GATHER = 2 * (WIDTH * HIDDEN // 4 + WIDTH * HIDDEN)


def expected(kind, place, **changes) -> Total:
    row = {"kind": kind, "network": "ici", "place": place, "executions": 2 * LAYERS * 2}
    row |= {"step_bytes": 2 * LAYERS * BYTES_OF_A_GATHER}
    row |= {"step_wire_bytes": 2 * LAYERS * BYTES_OF_A_GATHER * 3 / 4} | changes
    return Total(**row)


WITHIN_A_SLICE = [
    expected("all-gather", "forward"),
    expected("all-gather", "backward"),
    expected("reduce-scatter", "backward"),
]


@pytest.fixture(scope="module")
def on_a_slice(gradient_of_layers):
    return gradient_of_layers(1)


@pytest.fixture(scope="module")
def on_two_slices(gradient_of_layers):
    return gradient_of_layers(2)


def unpadded(rows: list[Total]) -> list[Total]:
    """The rows without the padding of scatters, below 1 %, and without what it exchanges."""
    designed = {(row.kind, row.place): row for row in WITHIN_A_SLICE}
    found = []
    for row in rows:
        design = designed.get((row.kind, row.place))
        if row.kind == "reduce-scatter" and design:
            assert design.step_bytes <= row.step_bytes < 1.01 * design.step_bytes
            row = replace(row, step_bytes=design.step_bytes, step_wire_bytes=design.step_wire_bytes)
        if row.kind != "collective-permute" or row.step_bytes > 2**18:
            found.append(row)
    return found


def in_order(rows):
    return sorted(rows, key=lambda row: (row.network, row.kind, row.place))


def test_a_scan_gathers_forward_and_again_backward_and_scatters_its_gradient(on_a_slice):
    text, mesh_shape = on_a_slice
    assert "async-collective-start" in text, "or else clones are not tried"
    assert "all-reduce-scatter" in text, "or else reduce-scatters are not tried"
    found = collectives(text, mesh_shape)
    assert in_order(unpadded(totals(found))) == in_order(WITHIN_A_SLICE)
    assert all(one.in_loop and one.executions == LAYERS for one in found)
    assert {one.axes for one in found} == {("data_major",), ("data_minor",)}
    assert {one.dtype for one in found} == {"bf16"}


def test_between_slices_goes_the_sum_of_the_split_gradients_alone(on_two_slices):
    text, mesh_shape = on_two_slices
    found = collectives(text, mesh_shape)
    split_gradients = 4 * 2 * LAYERS * WIDTH * HIDDEN // 16  # float32
    assert in_order([row for row in totals(found) if row.network == "dcn"]) == [
        expected(
            "all-reduce",
            "outside",
            network="dcn",
            executions=2,
            step_bytes=split_gradients,
            step_wire_bytes=split_gradients,
        )
    ]
    within = [row for row in totals(found) if row.network == "ici"]
    assert in_order(unpadded(within)) == in_order(WITHIN_A_SLICE)


def test_a_layer_is_whole_in_memory_and_the_stack_is_not(on_a_slice):
    text, _ = on_a_slice
    assert {array.dtype for array in reshapes_of(text, WIDTH, HIDDEN)} == {"bf16"}
    assert reshapes_of(text, LAYERS, WIDTH, HIDDEN) == []
    assert reshapes_of(text, LAYERS, WIDTH // 4, HIDDEN // 4)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "axes", "group"),
    [
        ("all_reduce", "all-reduce", [2 * MIB], [("data_major", "data_minor")], 16),
        ("scatter", "reduce-scatter", [2 * MIB, MIB // 2], [("data_major",), ("data_minor",)], 4),
        ("permute", "collective-permute", [2 * MIB], [("data_minor",)], 4),
        ("mirror", "collective-permute", [2 * MIB], [("data_minor",)], 2),
        ("exchange", "all-to-all", [2 * MIB], [("data_major",)], 4),
        ("scalar", "all-reduce", [4], [("data_major", "data_minor")], 16),
    ],
)
def test_one_collective_is_found_as_it_was_written(mesh_of_chips, name, kind, sizes, axes, group):
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    both = ("data_major", "data_minor")
    ring = [(chip, (chip + 1) % 4) for chip in range(4)]
    functions = {
        "all_reduce": (lambda x: lax.psum(x, both), P()),
        "scatter": (
            lambda x: lax.psum_scatter(
                lax.psum_scatter(x, both[0], tiled=True), both[1], scatter_dimension=1, tiled=True
            ),
            P(*both),
        ),
        "permute": (lambda x: lax.ppermute(x, both[1], ring), P(both)),
        "mirror": (lambda x: lax.ppermute(x, both[1], [(i, 3 - i) for i in range(4)]), P(both)),
        "exchange": (lambda x: lax.all_to_all(x, both[0], 1, 0, tiled=True), P(both)),
        "scalar": (lambda x: lax.psum(jnp.sum(x.astype(jnp.float32)), both), P()),
    }
    function, out = functions[name]
    mesh = mesh_of_chips(sixteen_chips())
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(both), out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((16 * 1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(both)))
    found = collectives(jax.jit(mapped).lower(x).compile().as_text(), dict(mesh.shape))
    assert [one.kind for one in found] == [kind] * len(sizes)
    assert [one.full_bytes for one in found] == sizes
    assert [one.axes for one in found] == axes
    assert all((one.group, one.executions, one.in_loop) == (group, 1, False) for one in found)
