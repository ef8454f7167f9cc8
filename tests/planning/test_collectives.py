"""What programs move, written by hand in every form, and compiled where the answer is known.

The compiled ones are made for 16 chips of a TPU v5e by its real compiler, libtpu.
"""

import os

import pytest

from gemma_train.planning.collectives import Collective, Total, collectives, totals
from gemma_train.planning.program import reshapes_of

GROUPS = "replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}"
SHARD, WHOLE = "bf16[1024,256]{1,0:T(8,128)(2,1)}", "bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}"
MIB = 2**20


def program(*lines: str, before: str = "") -> str:
    inner = "".join(f"  {line}\n" for line in lines)
    return (
        f"HloModule jit_step, is_scheduled=true, num_partitions=16\n\n{before}"
        f"ENTRY %main (p: bf16[1024,256], w: bf16[1024,1024]) -> bf16[1024,1024] {{\n"
        f"  %p = {SHARD} parameter(0)\n  %w = {WHOLE} parameter(1)\n{inner}}}\n"
    )


def only(text: str) -> Collective:
    (found,) = collectives(text, {"replica": 1, "data_major": 4, "data_minor": 4, "seq": 1})
    return found


@pytest.mark.parametrize(
    ("lines", "kind", "full_bytes"),
    [
        ([f"%g = {WHOLE} all-gather(%p), {GROUPS}, dimensions={{1}}"], "all-gather", 2 * MIB),
        ([f"%s = {SHARD} reduce-scatter(%w), {GROUPS}, to_apply=%add"], "reduce-scatter", 2 * MIB),
        ([f"%r = {WHOLE} all-reduce(%w), {GROUPS}, to_apply=%add"], "all-reduce", 2 * MIB),
        ([f"%t = {SHARD} all-to-all(%p), {GROUPS}, dimensions={{0}}"], "all-to-all", MIB // 2),
        (
            [
                f"%start = ({SHARD}, {WHOLE}) all-gather-start(%p), {GROUPS}, dimensions={{1}}",
                f"%done = {WHOLE} all-gather-done(%start)",
            ],
            "all-gather",
            2 * MIB,
        ),
        (
            [
                f"%start = (({SHARD}, {SHARD}), ({WHOLE}, {WHOLE})) all-gather-start(%p, %p), "
                f"{GROUPS}",
                f"%done = ({WHOLE}, {WHOLE}) all-gather-done(%start)",
            ],
            "all-gather",
            4 * MIB,
        ),
        (
            [
                f"%start = {WHOLE} all-reduce-start(%w), {GROUPS}, to_apply=%add",
                f"%done = {WHOLE} all-reduce-done(%start)",
            ],
            "all-reduce",
            2 * MIB,
        ),
        (
            [
                f"%start = ({SHARD}, {SHARD}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) "
                "collective-permute-start(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
                f"%done = {SHARD} collective-permute-done(%start)",
            ],
            "collective-permute",
            MIB // 2,
        ),
        (
            [f"%r = ({WHOLE}, /*index=1*/{SHARD}) all-reduce(%w, %p), {GROUPS}, to_apply=%add"],
            "all-reduce",
            2 * MIB + MIB // 2,
        ),
    ],
)
def test_a_collective_counts_once_with_its_full_tensor(lines, kind, full_bytes):
    found = only(program(*lines))
    assert (found.kind, found.network, found.executions) == (kind, "ici", 1)
    assert found.full_bytes == full_bytes
    assert (found.group, found.axes) == (4, ("data_minor",))
    assert not found.in_loop


def test_clones_of_an_asynchronous_collective_count_once():
    names = ["part.1", "async_collective_fusion.2", "async_collective_fusion.3", "part.4"]
    clones = "".join(
        f"%{name} (a: bf16[1024,256]) -> bf16[1024,1024] {{\n  %a = {SHARD} parameter(0)\n"
        f"  ROOT %g = {WHOLE} all-gather(%a), channel_id=7, {GROUPS}, dimensions={{1}}\n}}\n\n"
        for name in names
    )
    text = program(
        f"%async-collective-start.1 = {WHOLE} fusion(%p), kind=kLoop, calls=%part.1",
        f"%fusion.2 = {WHOLE} fusion(%p), kind=kOutput, calls=%async_collective_fusion.2",
        f"%fusion.3 = {WHOLE} fusion(%p), kind=kOutput, calls=%async_collective_fusion.3",
        f"%async-collective-done.1 = {WHOLE} fusion(%p), kind=kLoop, calls=%part.4",
        before=clones,
    )
    assert text.count(" all-gather(") == 4
    assert (only(text).kind, only(text).step_bytes) == ("all-gather", 2 * MIB)


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    fused = f"""%all-reduce-scatter.1 (a: bf16[1024,1024]) -> bf16[1024,256] {{
  %a = {WHOLE} parameter(0)
  %all-reduce.1 = {WHOLE} all-reduce(%a), channel_id=1, {GROUPS}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = {SHARD} dynamic-slice(%all-reduce.1, %zero, %zero)
}}

"""
    path = 'metadata={op_name="jit(step)/mlp/reshard"}'
    call = f"%f = {SHARD} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1, {path}"
    found = only(program(call, before=fused))
    assert (found.kind, found.full_bytes, found.source) == (
        "reduce-scatter",
        2 * MIB,
        "mlp/reshard",
    )
    assert found.wire_bytes == 2 * MIB * 3 / 4


@pytest.mark.parametrize(
    ("transfer", "kind", "sent", "received", "full_bytes"),
    [
        ("ALL_REDUCE", "all-reduce", WHOLE, WHOLE, 2 * MIB),
        ("ALL_GATHER", "all-gather", SHARD, WHOLE, 2 * MIB),
        ("REDUCE_SCATTER", "reduce-scatter", WHOLE, SHARD, 2 * MIB),
        ("ALL_TO_ALL", "all-to-all", SHARD, SHARD, MIB // 2),
        ("ONE_TO_ONE", "collective-permute", SHARD, SHARD, MIB // 2),
    ],
)
def test_what_goes_to_another_slice_goes_over_the_data_center_network(
    transfer, kind, sent, received, full_bytes
):
    attributes = (
        "channel_id=2, is_host_transfer=true, frontend_attributes={"
        '_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="psum.7_0",_xla_megascale_target="{1,2}x{0:15}",'
        f'_xla_megascale_transfer_type="{transfer}"}}'
    )
    operand = "%p" if sent == SHARD else "%w"
    text = program(
        "%token = token[] after-all()",
        f"%send = ({sent}, u32[]{{:S(2)}}, token[]) send({operand}, %token), {attributes}",
        f"%recv = ({received}, u32[]{{:S(2)}}, token[]) recv(%token), {attributes}",
        f"%send-done = token[] send-done(%send), {attributes}",
        f"%recv-done = ({received}, token[]) recv-done(%recv), {attributes}",
    )
    (found,) = collectives(text, {"replica": 2, "data_major": 4, "data_minor": 4, "seq": 1})
    assert (found.network, found.kind, found.full_bytes) == ("dcn", kind, full_bytes)
    assert (found.group, found.axes, found.source) == (2, ("replica",), "psum.7_0")


def test_a_send_to_the_host_is_no_collective():
    text = program(
        "%token = token[] after-all()",
        f"%send = ({SHARD}, u32[], token[]) send(%p, %token), is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="tf_rendezvous"}',
    )
    assert collectives(text) == []


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3 / 4),
        ("all-to-all", 3 / 4),
        ("all-reduce", 3 / 2),
        ("collective-permute", 1),
    ],
)
def test_what_a_chip_sends_follows_from_the_ring(kind, parts):
    found = Collective(
        kind=kind,
        network="ici",
        place="outside",
        dtype="bf16",
        shape=(50,),
        full_bytes=100,
        group=4,
        axes=(),
        executions=7,
        source="",
        in_loop=True,
    )
    assert (found.wire_bytes, found.step_wire_bytes) == (100 * parts, 700 * parts)
    assert found.step_bytes == 700
    (total,) = totals([found, found])
    assert (total.executions, total.step_bytes) == (14, 1400)
    assert total.step_wire_bytes == 1400 * parts


# Compiled programs.


@pytest.fixture(scope="module")
def mesh_of_chips():
    """Makes a mesh of v5e slices of 4 x 4 chips that are not there."""
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler: Linux on x86-64")
    os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    from jax.experimental import topologies

    from gemma_train.mesh import MeshConfig, make_mesh

    def make(slices: int = 1):
        chips = topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:4x4", num_slices=slices
        )
        return make_mesh(MeshConfig(replica=slices, data=16, slices=slices), list(chips.devices))

    return make


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
        mesh = mesh_of_chips(slices)
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


def in_order(rows):
    return sorted(rows, key=lambda row: (row.network, row.kind, row.place))


def test_a_scan_gathers_forward_and_again_backward_and_scatters_its_gradient(on_a_slice):
    text, mesh_shape = on_a_slice
    assert "async-collective-start" in text, "or else clones are not tried"
    assert "all-reduce-scatter" in text, "or else reduce-scatters are not tried"
    found = collectives(text, mesh_shape)
    assert in_order(totals(found)) == in_order(WITHIN_A_SLICE)
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
    assert in_order(within) == in_order(WITHIN_A_SLICE)


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
        "exchange": (lambda x: lax.all_to_all(x, both[0], 1, 0, tiled=True), P(both)),
        "scalar": (lambda x: lax.psum(jnp.sum(x.astype(jnp.float32)), both), P()),
    }
    function, out = functions[name]
    mesh = mesh_of_chips()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(both), out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((16 * 1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(both)))
    found = collectives(jax.jit(mapped).lower(x).compile().as_text(), dict(mesh.shape))
    assert [one.kind for one in found] == [kind] * len(sizes)
    assert [one.full_bytes for one in found] == sizes
    assert [one.axes for one in found] == axes
    assert all((one.group, one.executions, one.in_loop) == (group, 1, False) for one in found)
