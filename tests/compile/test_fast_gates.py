"""What the TPU compiler makes of a small step: every gate holds, and every gate can fail.

The shapes are small and the mesh is of sixteen chips to a slice, in the two hops of a large one.
"""

import math
from dataclasses import replace

import pytest

from gemma_train.mesh import MeshConfig
from gemma_train.planning.collectives import collectives
from gemma_train.planning.compiled import Compiled
from gemma_train.planning.gates import gates
from gemma_train.planning.memory import BFLOAT16, FLOAT32, layer_parameters, state_bytes
from gemma_train.planning.program import read, reshapes_of
from gemma_train.planning.slices import Slices
from gemma_train.planning.traffic import hops, vocabulary_sums

ONE_SLICE: dict = {}
TWO_SLICES = {
    "mesh__replica": 2,
    "mesh__slices": 2,
    "accumulation": 2,
    "data__batch_rows": 64,
}
PROGRAMS = pytest.mark.parametrize("changes", [ONE_SLICE, TWO_SLICES], ids=["one", "two"])


@pytest.fixture
def step_of(small_run, compiled_step):
    """The config, and what its collectives are."""

    def make(changes):
        config = small_run(**changes)
        program = read(compiled_step(config).program)
        return config, program, collectives(program, config.mesh.axis_sizes)

    return make


def gates_of(config, compiled) -> dict[str, object]:
    slices = Slices.named(config.mesh.topology, config.mesh.slices)
    return {gate.name: gate for gate in gates(config, slices, compiled)}


def all_layers(config) -> int:
    """Bytes of the layers' matrices in bfloat16, as often as there are microbatches."""
    model = config.model
    return BFLOAT16 * model.layers * layer_parameters(model) * config.accumulation


def step_bytes(found, **wanted) -> int:
    return sum(
        one.step_bytes
        for one in found
        if all(getattr(one, name) == value for name, value in wanted.items())
    )


@PROGRAMS
def test_every_gate_holds(changes, small_run, compiled_step):
    config = small_run(**changes)
    found = gates_of(config, compiled_step(config))
    assert [gate.told for gate in found.values() if not gate.holds] == []


@PROGRAMS
def test_layers_are_gathered_twice_in_two_hops_in_bfloat16(changes, step_of):
    config, _, found = step_of(changes)
    once = all_layers(config) * hops(config)
    assert hops(config) == 1 + 1 / 4
    for place in ("forward", "backward"):
        assert step_bytes(found, kind="all-gather", place=place, dtype="bf16") == once
        assert step_bytes(found, kind="all-gather", place=place) == once


@PROGRAMS
def test_gradients_of_layers_are_scattered_once_in_two_hops(changes, step_of):
    config, _, found = step_of(changes)
    once = all_layers(config) * hops(config)
    scattered = step_bytes(found, kind="reduce-scatter", place="backward", dtype="bf16")
    assert once <= scattered <= 1.01 * once  # padded to the tiles of TPUs


@PROGRAMS
def test_the_table_is_gathered_in_two_halves_and_scattered_in_two(changes, step_of):
    config, _, found = step_of(changes)
    model = config.model
    halves = 2 * config.accumulation * BFLOAT16 * model.vocabulary * model.width // 4
    outside = [one for one in found if one.place == "outside" and not one.source.count("chunk")]
    large = [one for one in outside if one.full_bytes > halves // config.accumulation // 3]
    assert step_bytes(large, kind="all-gather") == halves
    assert halves <= step_bytes(large, kind="reduce-scatter") <= 1.02 * halves


@PROGRAMS
def test_chips_that_share_out_the_vocabulary_sum_the_figures_of_tokens_and_no_more(
    changes, step_of
):
    config, _, found = step_of(changes)
    arrays = [one for one in found if math.prod(one.shape) > 1]
    assert step_bytes(arrays, kind="all-reduce", axes=("data_minor",)) == vocabulary_sums(config)


@PROGRAMS
def test_neither_the_table_nor_the_logits_are_ever_whole(changes, step_of):
    config, program, _ = step_of(changes)
    v, d, tokens = config.model.vocabulary, config.model.width, 1024
    assert reshapes_of(program, v, d) == []
    for rows in (tokens, 4 * tokens):  # of one chip, and of those that share out the vocabulary
        assert reshapes_of(program, rows, v) == []
        assert rows == tokens or reshapes_of(program, rows, v // 4) == []
    chunk = reshapes_of(program, 256 * 4, v // 4)
    assert chunk, "or else shapes are not told as they are"


def test_between_slices_goes_a_shard_once_and_the_tables_once_a_microbatch(step_of):
    config, _, found = step_of(TWO_SLICES)
    between = [one for one in found if one.network == "dcn"]
    shard = config.model.vocabulary * config.model.width // 16
    table = FLOAT32 * shard
    again = [one for one in between if one.executions > 1]  # a sum of matrices has its size too
    of_table = [one for one in again if shard <= math.prod(one.shape) < 1.05 * shard]
    assert [one.executions for one in of_table] == [config.accumulation]
    shards = state_bytes(config).gradients - table
    rest = [one for one in between if one not in of_table]
    large = [one for one in rest if not one.in_loop and one.full_bytes > 2**16]
    assert 0.98 * shards <= sum(one.full_bytes for one in large) <= shards
    assert {one.executions for one in large} == {1}
    assert step_bytes(rest) < 1.05 * shards, "norms, in the loop, are all that is left"


def test_a_slice_sums_nothing_over_replica(step_of):
    _, _, found = step_of(ONE_SLICE)
    assert [one for one in found if one.network == "dcn"] == []


@PROGRAMS
def test_a_second_step_finds_the_state_as_the_first_did(changes, small_run, mesh_of_chips):
    import jax

    from gemma_train.placement import abstract_batch
    from gemma_train.teachers.stored import batch_layout
    from gemma_train.training.state import abstract_state
    from gemma_train.training.step import make_step

    config = small_run(**changes)
    mesh = mesh_of_chips(config.mesh)
    with jax.set_mesh(mesh):
        state = abstract_state(config)
        batch = abstract_batch(mesh, config.data.batch_rows, batch_layout(config))
        after, _ = jax.eval_shape(make_step(config), state, batch)

    def types(tree) -> list[str]:
        return [
            f"{leaf.shape} {leaf.dtype} {leaf.weak_type} {leaf.sharding.spec}"
            for leaf in jax.tree.leaves(tree)
        ]

    assert types(after) == types(state), "or else it would be compiled anew"


def naive_gradients(vocabulary: int, everyone: tuple[str, ...]):
    """Makes the part of one chip: (gradients of the layers, of the table), both whole."""
    import jax
    import jax.numpy as jnp

    def on_a_chip(layers_ldf, table_vd, x_td, targets_t):
        table_vd = jax.lax.all_gather(table_vd, "data_minor", axis=0, tiled=True)

        def layer(x_td, weight_df):
            whole_df = jax.lax.all_gather(weight_df, everyone[1:], axis=0, tiled=True)
            hidden_tf = jnp.tanh(x_td @ whole_df.astype(x_td.dtype))
            gradient_df = jax.lax.psum((x_td.T @ hidden_tf).astype(jnp.float32), "replica")
            x_td = hidden_tf @ whole_df.astype(x_td.dtype).T
            return x_td, jax.lax.psum(gradient_df, everyone[1:])

        x_td, gradients_ldf = jax.lax.scan(layer, x_td, layers_ldf)
        logits_tv = (x_td @ table_vd.astype(x_td.dtype).T).astype(jnp.float32)
        powers_tv = jax.nn.softmax(logits_tv) - jax.nn.one_hot(targets_t, vocabulary)
        gradient_vd = jax.lax.psum(powers_tv.T @ x_td.astype(jnp.float32), everyone)
        return gradients_ldf, gradient_vd

    return on_a_chip


@pytest.fixture(scope="session")
def naive_step(mesh_of_chips, small_run):
    """(config, compiled): a step of the same shape as a partitioner left alone might make it.

    Weights are gathered as float32, in one hop, ahead of their scan and in it; gradients are
    summed whole, over slices too; table and logits are whole.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh_config = MeshConfig(replica=2, data=16, topology="v5e:4x4", slices=2)
    config = small_run(**TWO_SLICES, model__width=4096, model__hidden=4608)
    config = replace(config, accumulation=1)
    mesh, model = mesh_of_chips(mesh_config), config.model
    everyone = ("replica", "data_major", "data_minor")

    mapped = jax.shard_map(
        naive_gradients(model.vocabulary, everyone),
        mesh=mesh,
        in_specs=(P(None, everyone[1:]), P("data_minor"), P(everyone), P(everyone)),
        out_specs=(P(), P()),
        check_vma=False,
    )
    tokens = config.step_tokens

    def array(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    arguments = (
        array((model.layers, model.width, model.hidden), jnp.float32, None, everyone[1:]),
        array((model.vocabulary, model.width), jnp.float32, "data_minor"),
        array((tokens, model.width), jnp.bfloat16, everyone),
        array((tokens,), jnp.int32, everyone),
    )
    program = jax.jit(mapped).lower(*arguments).compile().as_text()
    return config, Compiled(peak_bytes=2**40, argument_bytes=0, program=program, seconds=0.0)


@pytest.mark.parametrize(
    "gate",
    [
        "largest all-reduce",
        "all-reduces of a step",
        "largest all-gather of float32",
        "bytes between slices",
        "[vocabulary, width] in one piece",
        "logits at one time",
        "peak of HBM",
    ],
)
def test_a_naive_step_fails_every_gate(gate, naive_step):
    found = gates_of(*naive_step)
    assert not found[gate].holds, found[gate].told


def test_weights_gathered_once_too_often_are_found(small_run, compiled_step):
    config = small_run()
    without_recomputing = replace(config, compute=replace(config.compute, remat="none"))
    gate = gates_of(without_recomputing, compiled_step(config))["all-gathers of a step"]
    assert not gate.holds, "the program gathers a second time, which this config would not"
