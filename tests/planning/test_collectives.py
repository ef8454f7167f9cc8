"""What programs move, written by hand in every form."""

import pytest

from gemma_train.planning.collectives import Collective, collectives, totals

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
