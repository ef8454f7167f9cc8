"""`gemma-train plan`: the page, the files, the refusals, and what is left without a compiler."""

import json

import pytest

from gemma_train.commands import command_line
from gemma_train.model.config import SAVABLE
from gemma_train.planning.compiled import Compiled

CONFIG = """
from gemma_train.config import *

config = RunConfig(
    folder="runs/pod",
    model=GemmaConfig(
        vocabulary=512, width=128, layers=1, query_heads=1, key_value_heads=1, head_dimension=128,
        hidden=384, context=256, query_key_norm=True, post_norms=True,
    ),
    data=DataConfig(
        tokenizer="none", train=(TokenSource(path="none"),), sequence_length=256, batch_rows=16
    ),
    steps=1000,
    mesh=MeshConfig(data=4, topology="v5e:2x2"),
)
"""


@pytest.fixture
def config(tmp_path) -> str:
    file = tmp_path / "pod.py"
    file.write_text(CONFIG)
    return str(file)


# A gradient of four million numbers that all chips sum whole.
SUMMED_WHOLE = """HloModule jit_step, num_partitions=4

ENTRY %main (p: f32[4000000]) -> f32[4000000] {
  %p = f32[4000000]{0} parameter(0)
  ROOT %r = f32[4000000]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


@pytest.fixture
def compiler_gives(monkeypatch):
    """Puts a compiler in place that makes this program of every step."""

    def put(program: str) -> None:
        made = Compiled(peak_bytes=10**9, argument_bytes=0, program=program, seconds=1.0)
        monkeypatch.setattr("gemma_train.commands.plan.compile_for", lambda *_: made)

    return put


@pytest.fixture
def without_compiler(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)


@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_a_folder_to_write_to_is_refused_before_anything_is_compiled(
    tmp_path, config, gemma_train, flag
):
    done = gemma_train("plan", config, flag, str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gemma-train: {str(tmp_path)!r} is a folder: name a file in it\n"


def test_a_plan_is_printed_and_written_and_the_screen_is_clean(tmp_path, config, gemma_train):
    files = [str(tmp_path / name) for name in ("plan.json", "plan.html")]
    done = gemma_train(
        "plan", config, "--json", files[0], "--html", files[1], "--cost.price", "1.5"
    )
    assert done.returncode == 0, done.stderr
    if "no TPU compiler here" in done.stdout:
        pytest.skip("no TPU compiler here")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "pod: 279k parameters on 4 chips, v5e:2x2"
    assert "compiling the step for 4 v5e ..." in lines
    assert "the TPU compiler's" in done.stdout
    assert lines[-2:] == [f"wrote {file}" for file in files]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["memory"]["source"] == "compiled"
    assert plan["memory"]["fits"]
    assert {row["kind"] for row in plan["collectives"]} >= {"all-gather", "reduce-scatter"}
    assert plan["traffic"]["dcn_bytes"] == 0
    assert "<svg" in (tmp_path / "plan.html").read_text()


def test_without_a_compiler_the_counted_part_is_told(config, capsys, without_compiler):
    assert command_line.run(["plan", config]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "pip install -e '.[plan]'" in told.out
    assert "JAX TPU support not installed" in told.out
    for part in (
        "parameters",
        "moments",
        "MFU",
        "chip-hours",
        "modelled, not compiled",
        "  not checked: not compiled",
    ):
        assert part in told.out, part


def test_flags_of_the_plan_and_of_the_config_stand_together(config, capsys):
    words = ["--topology", "v5e:4x4", "--slices", "2", "--mesh.replica", "2", "--mesh.data", "16"]
    more = ["--steps", "77", "--data.batch-rows", "64", "--cost.pue", "1.3", "--no-compile"]
    assert command_line.run(["plan", config, *words, *more]) == 0
    told = capsys.readouterr().out
    assert "on 32 chips, 2 x v5e:4x4" in told
    assert command_line.run(["plan", config, "--topology=v5e:1x1", "--mesh.data", "1", *more]) == 0
    assert "on 1 chip, v5e:1x1" in capsys.readouterr().out
    assert "run     77 steps" in told
    assert "PUE 1.3" in told


def test_a_run_on_slices_moves_to_one_slice_with_fewer_replicas(tmp_path, config, capsys):
    text = CONFIG.replace('data=4, topology="v5e:2x2"', "replica=2, data=2, slices=2")
    (tmp_path / "pod.py").write_text(text)
    words = ["--topology", "v5e:2x2", "--slices", "1", "--mesh.replica", "1", "--mesh.data", "4"]
    assert command_line.run(["plan", config, *words, "--no-compile"]) == 0
    assert "on 4 chips, v5e:2x2" in capsys.readouterr().out


def test_help_shows_both(capsys):
    with pytest.raises(SystemExit):
        command_line.run(["plan", "--help"])
    told = capsys.readouterr().out
    for flag in (
        "--topology",
        "--mesh.topology",
        "--cost.price",
        "--assume.overlapped",
        "--optimizer.peak-lr",
    ):
        assert flag in told


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--topology", "v4:16x16x24"],
            ["v4 pod has 4,096 chips", "v4:8x16x16 with mesh.slices 3"],
        ),
        (["--mesh.data", "2"], ["= 2 chips, but v5e:2x2 has 4", "with product 4"]),
        (["--slices", "2"], ["mesh.slices is 2: it must divide mesh.replica, 1"]),
        (["--compute.dtype", "float32"], ["--compute.dtype bfloat16"]),
        (["--cost.pue", "0.5"], ["cost.pue is 0.5"]),
        (["--mesh.topologie", "v5e:2x2"], ["--mesh.topologie", "--mesh.topology "]),
        (["--json", "nowhere/plan.json"], ["'nowhere'", "does not exist"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_do(words, parts, config, capsys):
    assert command_line.run(["plan", config, *words]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("gemma-train: ")
    assert "\n" not in told
    for part in parts:
        assert part in told


def test_a_config_without_a_topology_asks_for_one(tmp_path, config, capsys):
    (tmp_path / "pod.py").write_text(CONFIG.replace(', topology="v5e:2x2"', ""))
    assert command_line.run(["plan", config]) == 2
    assert "give plan --topology" in capsys.readouterr().err


def test_a_step_that_does_not_fit_is_told_and_refused(config, capsys):
    code = command_line.run(["plan", config, "--data.batch-rows", str(2**19)])
    told = capsys.readouterr()
    if "no TPU compiler here" in told.out:
        pytest.skip("no TPU compiler here")
    assert code == 2
    assert "the TPU compiler refuses it" in told.out
    line = told.err.strip()
    assert "\n" not in line
    assert "does not fit the 16.9 GB of a v5e chip: at least" in line
    assert line.count(" or ") == 1
    assert "--accumulation" in line


def test_a_gate_that_fails_is_named_and_the_code_is_1(tmp_path, config, capsys, compiler_gives):
    compiler_gives(SUMMED_WHOLE)
    file = tmp_path / "plan.json"
    assert command_line.run(["plan", config, "--json", str(file)]) == 1
    told = capsys.readouterr()
    assert told.err == (
        "gemma-train: the compiled step fails 1 of 8 gates: all-reduces of a step: "
        "docs/pods.md says what each is there for\n"
    )
    for part in ("fails: all-reduces of a step: 16 MB, at most 1.07 MB", "chip-hours", "wrote "):
        assert part in told.out, part
    gates = {gate["name"]: gate["holds"] for gate in json.loads(file.read_text())["gates"]}
    assert [name for name, holds in gates.items() if not holds] == ["all-reduces of a step"]


def test_gates_that_hold_leave_the_code_0(config, capsys, compiler_gives):
    compiler_gives(SUMMED_WHOLE.replace("4000000", "4000"))
    assert command_line.run(["plan", config]) == 0
    told = capsys.readouterr()
    assert "all 8 hold" in told.out
    assert told.err == ""


def test_a_program_that_cannot_be_read_is_not_taken_for_one_that_holds(
    tmp_path, config, capsys, compiler_gives
):
    compiler_gives("")
    file = tmp_path / "plan.json"
    assert command_line.run(["plan", config, "--json", str(file)]) == 1
    told = capsys.readouterr()
    assert "  not checked: not read" in told.out
    assert told.err == (
        "gemma-train: no gate was checked: the compiled step could not be read with this libtpu\n"
    )
    assert json.loads(file.read_text())["gates"] is None


def test_a_search_numbers_its_policies_and_tells_the_found_one_once(config, capsys, compiler_gives):
    compiler_gives(SUMMED_WHOLE.replace("4000000", "4000"))
    assert command_line.run(["plan", config, "--lean-remat", "device"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("compiling")] == [
        "compiling the step for 4 v5e, policy 1 of at most 6: nothing kept ...",
        f"compiling the step for 4 v5e, policy 2 of at most 6: {len(SAVABLE)} products kept ...",
    ]
    assert sum(" ".join(SAVABLE) in line for line in lines) == 1
