"""Which collectives a gate counts: told apart by kind, place, axes and how often they run."""

from dataclasses import replace

import pytest

from gemma_train.config import MeshConfig, load
from gemma_train.planning.collectives import Collective
from gemma_train.planning.gates import (
    ALL_REDUCE_SHARE,
    LARGEST_PADDING,
    SMALL,
    all_reduce_gates,
    between_slices_gate,
    float32_gather_gate,
    vocabulary_gates,
    weight_bytes,
)
from gemma_train.planning.memory import padded_gradient_bytes, state_bytes

MIB = 2**20
SUM = Collective(
    kind="all-reduce",
    network="ici",
    place="outside",
    dtype="f32",
    shape=(1,),
    full_bytes=100 * MIB,
    group=2,
    axes=("replica",),
    executions=1,
    source="",
    in_loop=False,
)


def all_reduces(config, **changes) -> tuple[bool, bool]:
    """Whether (the largest all-reduce, all of a step) hold of a step with one such sum."""
    largest, together = all_reduce_gates(config, [replace(SUM, **changes)])
    return largest.holds, together.holds


def test_shards_summed_over_replica_once_a_step_are_meant(pod_run):
    assert all_reduces(pod_run()) == (True, True)


@pytest.mark.parametrize("wrong", [{"executions": 2}, {"in_loop": True}])
def test_shards_summed_every_microbatch_are_found(wrong, pod_run):
    assert not all_reduces(pod_run(accumulation=2), **wrong)[1]


def test_the_table_may_be_summed_every_microbatch_and_no_more_often(pod_run):
    config = pod_run(accumulation=2)
    model = config.model
    shard = {"shape": (model.vocabulary // 4, model.width // 4), "in_loop": True}
    assert all_reduces(config, **shard, executions=2) == (True, True)
    assert not all_reduces(config, **shard, executions=4)[1]


def test_the_largest_all_reduce_is_one_of_a_scan(pod_run):
    within_a_slice = {"axes": ("data_major",)}
    assert all_reduces(pod_run(), **within_a_slice) == (True, False)
    assert all_reduces(pod_run(), **within_a_slice, place="backward") == (False, False)
    assert all_reduces(pod_run(), **within_a_slice, in_loop=True) == (False, False)


def test_figures_of_tokens_that_the_loss_sums_are_meant_and_leave_no_more_room():
    """270M on sixteen chips, of which four share out the vocabulary: 12.6 MB, and 10.7 allowed."""
    config = load("configs/gemma3_270m.py")
    mesh = MeshConfig(data=16, topology="v5e:4x4")
    config = replace(config, mesh=mesh, accumulation=4)
    over = {"axes": ("data_minor",), "in_loop": True}
    figures = replace(SUM, **over, full_bytes=3 * 4 * 4 * 256, executions=1024)
    allowed = int(ALL_REDUCE_SHARE * weight_bytes(config))
    assert figures.step_bytes > allowed
    _, together = all_reduce_gates(config, [figures, replace(SUM, **over, full_bytes=allowed)])
    assert together.holds
    _, together = all_reduce_gates(config, [figures, replace(SUM, **over, full_bytes=allowed + 1)])
    assert not together.holds


def test_a_gather_over_replica_alone_is_no_weight(pod_run):
    gathered = replace(SUM, kind="all-gather", full_bytes=1000 * MIB)
    assert float32_gather_gate(pod_run(), [gathered]).holds
    assert not float32_gather_gate(pod_run(), [replace(gathered, axes=("data_major",))]).holds


def test_norms_gradients_that_are_summed_together_may_be_gathered():
    """1B's 24 stacks of 4 repetitions x 1,152 / 16, each to 80 for the 16 chips along seq."""
    config = load("configs/gemma3_1b.py")
    gathered = replace(SUM, kind="all-gather", axes=("seq",), full_bytes=4 * 24 * 4 * 80)
    assert float32_gather_gate(config, [gathered]).holds
    assert not float32_gather_gate(config, [replace(gathered, full_bytes=4 * 24 * 4 * 81)]).holds


def test_as_many_tokens_as_the_table_has_rows_are_not_taken_for_it(pod_run):
    """64 rows of 8,192 are 16,384 tokens to a chip, 8,192 in each of two microbatches.

    A chunk of the loss is of four chips: 4,096.
    """
    name = "[vocabulary, width] in one piece"

    def told(**changes) -> dict[str, bool]:
        config = pod_run(**changes)
        table = f"bf16[{config.model.vocabulary},{config.model.width}]{{1,0}}"
        program = f"ENTRY %main (p: {table}) -> {table} {{\n  ROOT %p = {table} parameter(0)\n}}\n"
        return {gate.name: gate.holds for gate in vocabulary_gates(config, program)}

    assert told()[name] is False
    assert told(model__vocabulary=8192)[name] is False
    for vocabulary in (4096, 8192, 16_384):
        assert name not in told(model__vocabulary=vocabulary, accumulation=2)


SMALL_TABLE = {"model__vocabulary": 4096, "model__width": 128, "mesh__data": 4}


@pytest.mark.parametrize(
    ("shape", "holds"),
    [
        ("4096,128", False),
        ("2,2048,128", False),
        ("4,2048,1,64", True),  # rows of 2,048 tokens, as many as a part of the table has rows
    ],
)
def test_the_table_is_known_by_all_its_rows_or_by_its_parts(pod_run, shape, holds):
    program = f"ENTRY %main () -> bf16[{shape}] {{\n  ROOT %r = bf16[{shape}] iota()\n}}\n"
    gates = {gate.name: gate for gate in vocabulary_gates(pod_run(**SMALL_TABLE), program)}
    assert gates["[vocabulary, width] in one piece"].holds is holds


def test_a_weight_as_long_as_the_vocabulary_is_not_taken_for_the_table(pod_run):
    """Gate and up of a feed-forward of 2,048 are, side by side, 4,096 columns."""
    program = "ENTRY %main () -> f32[2] {\n  ROOT %r = f32[2] iota()\n}\n"
    assert len(vocabulary_gates(pod_run(**SMALL_TABLE, model__hidden=2048), program)) == 1
    assert len(vocabulary_gates(pod_run(**SMALL_TABLE, model__hidden=1536), program)) == 2


@pytest.mark.parametrize(("name", "found"), [("gemma3_1b", 18.5e6), ("gemma3_4b", 86.0e6)])
def test_between_slices_a_shard_may_be_padded_to_tiles_and_not_summed_twice(name, found):
    config = load(f"configs/{name}.py")
    sent = replace(SUM, network="dcn", full_bytes=int(found))
    assert between_slices_gate(config, [sent]).holds
    assert not between_slices_gate(config, [replace(sent, executions=2)]).holds
    twice = replace(sent, full_bytes=2 * state_bytes(config).gradients)
    assert not between_slices_gate(config, [twice]).holds


def test_shards_of_few_rows_do_not_loosen_the_gate(pod_run):
    config = pod_run(mesh__data=1024, model__width=1024, data__batch_rows=2048)
    shard = state_bytes(config).gradients
    assert padded_gradient_bytes(config) > 2 * shard
    sent = replace(SUM, network="dcn", full_bytes=2 * shard + SMALL)
    assert LARGEST_PADDING < 2
    assert not between_slices_gate(config, [sent]).holds
