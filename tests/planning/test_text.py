"""The printed page: every figure of the plan, aligned, and one line for a refusal."""

import json
from dataclasses import replace

import pytest

from gemma_train.planning.compiled import Compiled, TooLarge
from gemma_train.planning.cost import CostConfig
from gemma_train.planning.gates import Gate
from gemma_train.planning.page import page
from gemma_train.planning.plan import as_data
from gemma_train.planning.text import bar, head, refusal, thousands, told

GIB = 2**30


@pytest.fixture(scope="module")
def counted(pod_run, plan_of):
    return plan_of(pod_run(), cost=CostConfig(price=1.5))


@pytest.fixture(scope="module")
def refused(pod_run, plan_of):
    return plan_of(
        pod_run(data__batch_rows=256),
        TooLarge(needed_bytes=int(18.3 * GIB), available_bytes=int(15.75 * GIB), seconds=70),
    )


UNKNOWN_TRANSFER = """
ENTRY %main (a: f32[]) -> f32[] {
  %x = f32[] send(%a), attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
}
"""


@pytest.mark.parametrize("program", ["", UNKNOWN_TRANSFER])
def test_a_program_that_cannot_be_read_still_has_its_memory(program, pod_run, plan_of):
    compiled = Compiled(peak_bytes=3 * GIB, argument_bytes=0, program=program, seconds=70.0)
    plan = plan_of(pod_run(), compiled)
    lines = told(plan)
    assert sum("could not be read with this libtpu" in line for line in lines) == 1
    assert any("3.22 GB of 16.9 GB" in line for line in lines)
    assert "Could not be read with this libtpu" in page(plan)


def test_the_page_tells_mesh_memory_traffic_time_and_cost(counted, total_of):
    compiled = replace(counted, collectives=[total_of("ici", 5e9), total_of("dcn", 2e6)])
    lines = [*head(compiled), *told(compiled)]
    text = "\n".join(lines)
    assert lines[0] == "pod: 1B parameters on 32 chips, 2 x v5e:4x4"
    for part in (
        "replica 2 x data 16 x seq 1",
        "64 rows of 8,192 = 524,288 tokens",
        "1,000 steps = 524M tokens",
        "parameters",
        "moments",
        "gradients",
        "of 16.9 GB",
        "bound by compute · MFU",
        "GFLOPs of the model a token",
        "chip-hours",
        "kWh",
        "kg CO2",
        "at 1.5 a chip-hour",
        "75% of its peak",
        "122 W a chip (assumed",
    ):
        assert part in text, part
    rows = [line.split() for line in lines if "all-gather" in line]
    assert rows == [
        ["all-gather", "ICI", "forward", "26", "10", "GB", "5", "GB"],
        ["all-gather", "DCN", "forward", "26", "4", "MB", "2", "MB"],
    ]
    assert max(map(len, lines)) < 100
    assert "does not fit" not in text


def test_a_plan_without_a_compiler_says_so(counted):
    text = "\n".join(told(counted))
    assert "modelled, not compiled" in text
    assert "expected of the design" in text


def test_a_refused_plan_tells_by_how_much_and_what_would_do(refused):
    text = "\n".join(told(refused))
    assert "does not fit: at least 2.74 GB too much" in text
    assert refused.changes
    for change in refused.changes:
        assert change.flags in text
    line = refusal(refused)
    assert "\n" not in line
    assert "at least 2.74 GB too much" in line
    assert " or ".join(change.flags for change in refused.changes) in line


def test_everything_is_machine_readable(counted, refused):
    for plan in (counted, refused):
        data = json.loads(json.dumps(as_data(plan)))
        assert data["chips"] == 32
        assert data["memory"]["peak_bytes"] == plan.memory.peak_bytes
        assert data["memory"]["fits"] is plan.memory.fits
        assert data["estimate"]["step_seconds"] == plan.estimate.step_seconds
        assert data["config"]["mesh"]["topology"] == "v5e:4x4"
        assert len(data["changes"]) == len(plan.changes)


def test_the_web_page_stands_alone_and_holds_the_same(counted, refused, total_of):
    compiled = replace(counted, collectives=[total_of("ici", 5e9)])
    html = page(compiled)
    assert html.count("<svg") == 2
    assert "all-gather" in html
    assert "at 1.5 a chip-hour" in html
    assert "src=" not in html and "href=" not in html and "@import" not in html
    assert "var(--train)" in html and "#030405" not in html
    html = page(refused)
    assert "It does not fit" in html
    assert refused.changes[0].flags in html


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, "···· 0%"), (0.5, "██·· 50%"), (0.28, "█▏·· 28%"), (1, "████ 100%")]
)
def test_a_bar_is_as_long_as_its_share(share, drawn):
    assert bar(share, width=4) == drawn


def test_a_bar_that_overflows_says_so():
    assert bar(1.5, width=4) == "████▶ 150%"


def test_amounts_change_their_unit_when_they_grow():
    assert thousands(4703.1, "kWh", "MWh") == "4,703 kWh"
    assert thousands(935_540, "kWh", "MWh") == "936 MWh"


def test_a_gate_that_fails_is_told_with_its_figure_and_limit_and_others_are_not(counted):
    held = Gate(name="largest all-reduce", found_bytes=1e6, limit_bytes=2e6)
    failed = Gate(name="logits at one time", found_bytes=3e9, limit_bytes=2e9, worst="f32[9, 9]")
    page = "\n".join(told(replace(counted, gates=[held, failed])))
    assert "fails: logits at one time: 3 GB, at most 2 GB (f32[9, 9])" in page
    assert held.name not in page
    assert "all 1 hold: largest all-reduce" in "\n".join(told(replace(counted, gates=[held])))
    assert "  not checked: not compiled" in told(counted)
