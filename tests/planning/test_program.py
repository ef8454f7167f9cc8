"""Texts of compiled programs: what is read of them, how often a part runs, what memory holds."""

import pytest

from gemma_train.planning.program import Buffer, read, reshapes_of, shapes

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"


def condition(name: str, bound: int) -> str:
    return f"""
%{name} (state: (s32[], f32[8])) -> pred[] {{
  %bound.{name} = s32[]{{:T(128)}} constant({bound})
  %state.{name} = (s32[]{{:T(128)}}, f32[8]{{0:T(256)}}) parameter(0)
  %counter.{name} = s32[]{{:T(128)}} get-tuple-element(%state.{name}), index=0
  ROOT %less.{name} = pred[] compare(%counter.{name}, %bound.{name}), direction=LT
}}
"""


def body(name: str, *lines: str) -> str:
    inner = "".join(f"  {line}\n" for line in lines)
    return f"""
%{name} (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state.1 = (s32[]{{:T(128)}}, /*index=1*/f32[8]{{0:T(256)}}) parameter(0)
{inner}  ROOT %next.{name} = (s32[], f32[8]) tuple(%state.1)
}}
"""


def loop(name: str, *, start: int = 0, backend: str = "") -> tuple[str, ...]:
    """Lines that begin a loop's state and run it: `name` has a body and a condition."""
    state = "(s32[], f32[8]{0:T(256)})"
    return (
        f"%start.{name} = s32[] constant({start})",
        f"%copy.{name} = s32[] copy(%start.{name})",
        f"%zeros.{name} = f32[8]{{0}} broadcast(%copy.{name})",
        f"%tuple.{name} = {state} tuple(%copy.{name}, %zeros.{name})",
        f"%while.{name} = {state} while(%tuple.{name}), "
        f"condition=%condition.{name}, body=%body.{name}{backend}",
    )


def entry(*lines: str) -> str:
    inner = "".join(f"  {line}\n" for line in lines)
    return f"\nENTRY %main.1 (p: f32[8]) -> f32[8] {{\n{inner}}}\n"


def test_a_loop_runs_up_to_the_bound_of_its_condition():
    text = HEADER + body("body.a") + condition("condition.a", 7) + entry(*loop("a"))
    assert read(text).executions["body.a"] == 7
    assert read(text).executions["condition.a"] == 8


def test_a_loop_whose_first_turn_was_taken_out_runs_one_turn_less():
    text = HEADER + body("body.a") + condition("condition.a", 7) + entry(*loop("a", start=1))
    assert read(text).executions["body.a"] == 6


def test_the_known_trip_count_goes_before_the_condition():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    text = HEADER + body("body.a") + condition("condition.a", 7) + entry(*loop("a", backend=known))
    assert read(text).executions["body.a"] == 5


def test_a_bound_inside_a_fused_condition_is_found():
    text = f"""{HEADER}{body("body.a")}
%fused_less (counter: s32[]) -> pred[] {{
  %counter = s32[] parameter(0)
  %bound = s32[] constant(7)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}}

%condition.a (state: (s32[], f32[8])) -> pred[] {{
  %state = (s32[], f32[8]) parameter(0)
  %counter.1 = s32[] get-tuple-element(%state), index=0
  ROOT %fusion = pred[] fusion(%counter.1), kind=kLoop, calls=%fused_less
}}
{entry(*loop("a"))}"""
    assert read(text).executions["body.a"] == 7


def test_a_loop_within_a_loop_runs_as_often_as_both_together():
    text = (
        HEADER
        + (body("body.inner") + condition("condition.inner", 3))
        + (body("body.outer", *loop("inner")) + condition("condition.outer", 7))
        + entry(*loop("outer"))
    )
    program = read(text)
    assert program.executions["body.inner"] == 21
    assert [call.computation for call in program.calls_to("body.inner")] == [
        "body.inner",
        "body.outer",
    ]


def test_a_computation_called_from_two_places_runs_as_often_as_both_call_it():
    twice = ("%a = f32[8] call(%p), to_apply=%shared", "%b = f32[8] call(%a), to_apply=%shared")
    inside = "%c = f32[8] call(%p), to_apply=%shared"
    text = (
        HEADER
        + "%shared (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8] parameter(0)\n}\n"
        + (body("body.a", inside) + condition("condition.a", 7))
        + entry(*twice, *loop("a"))
    )
    assert read(text).executions["shared"] == 9


def test_an_asynchronous_call_runs_once_although_its_end_names_it_again():
    text = (
        HEADER
        + "%later (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8] parameter(0)\n}\n"
        + entry(
            "%begun = ((f32[8]), f32[8], u32[]) async-start(%p), calls=%later",
            "%on = ((f32[8]), f32[8], u32[]) async-update(%begun), calls=%later",
            "ROOT %done = f32[8] async-done(%on), calls=%later",
        )
    )
    assert read(text).executions["later"] == 1


def test_every_branch_of_a_conditional_counts():
    branch = "%{0} (x: f32[8]) -> f32[8] {{\n  ROOT %x = f32[8] parameter(0)\n}}\n"
    text = (
        HEADER
        + branch.format("left")
        + branch.format("right")
        + entry("%c = f32[8] conditional(%i, %p, %p), branch_computations={%left, %right}")
    )
    executions = read(text).executions
    assert (executions["left"], executions["right"]) == (1, 1)


def test_a_text_without_an_entry_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read("HloModule jit_step")


FUSED = (
    HEADER
    + """%fused_loss (logits: f32[512,32768]) -> f32[512] {
  %logits = f32[512,32768]{1,0:T(8,128)} parameter(0)
  %probabilities.1 = bf16[512,32768]{1,0:T(8,128)(2,1)} exponential(%logits)
  ROOT %sums = f32[512]{0:T(512)} reduce(%probabilities.1), dimensions={1}
}
"""
    + entry(
        "%table = bf16[256,128,2048]{2,1,0:T(8,128)(2,1)} parameter(0)",
        "%pair = (f32[16,2048]{1,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) custom-call(%table)",
        "%token = token[] after-all()",
        "ROOT %loss = f32[512]{0:T(512)} fusion(%table), kind=kLoop, calls=%fused_loss",
    )
)


def test_arrays_inside_a_fusion_are_not_held():
    assert shapes(FUSED) == {
        ("bf16", (256, 128, 2048)),
        ("f32", (16, 2048)),
        ("f32", ()),
        ("f32", (512,)),
    }
    assert reshapes_of(FUSED, 512, 32768) == []


def test_a_reshape_does_not_hide_an_array():
    found = [Buffer(dtype="bf16", shape=(256, 128, 2048))]
    assert reshapes_of(FUSED, 32768, 2048) == found
    assert reshapes_of(read(FUSED), 32768, 2048) == found, "a program read once will do"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("pred", 24), ("s4", 12), ("f8e4m3fn", 24), ("bf16", 48), ("f32", 96), ("c64", 192)],
)
def test_bytes_follow_from_the_type(dtype, expected):
    assert Buffer(dtype=dtype, shape=(2, 3, 4)).bytes == expected
