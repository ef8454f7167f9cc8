"""A mistake in a launch file or on the command line: one line that says what would do."""

import itertools
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_train.mesh import MeshConfig
from gemma_train.planning.slices import Slices
from launch.__main__ import main
from launch.job import ENVIRONMENT
from launch.rented import V5P_SHAPES, WORDS, Rented
from tests.launch.conftest import ROOT
from tests.launch.dry_runs import FILLED, ROWS

GOOD = {
    "name": "'gemma3-27b'",
    "config": "'configs/gemma3_27b.py'",
    "provider": "TpuVm()",
    "zone": "'us-east5-a'",
}


@pytest.fixture
def refused(cloud, tmp_path, capsys):
    """The one line with which a launch file is refused; nothing may have been called."""

    def told(*flags: str, verb: str = "create", **fields: str) -> str:
        body = ", ".join(f"{name}={value}" for name, value in (GOOD | fields).items())
        file = tmp_path / "mine.py"
        file.write_text(
            f"from launch.job import *\nfrom launch.providers import *\n\nlaunch = Launch({body})\n"
        )
        assert main([verb, str(file), *(flags or FILLED)]) == 2
        line = capsys.readouterr().err
        assert line.startswith("launch: ")
        assert line.count("\n") == 1
        assert cloud.calls == []
        return line

    return told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "'Gemma'"}, "name is 'Gemma'"),
        ({"name": "'a; rm -rf /'"}, "name is 'a; rm -rf /'"),
        ({"name": "'a' * 41"}, "name is 'aaaa"),
        ({"name": "'-dash'"}, "name is '-dash'"),
        (
            {"flags": "('--steps', '9', '--mesh.topology', 'v5e:4x4')"},
            "flags holds '--mesh.topology': machines are rented for the mesh of configs/gemma3_27b",
        ),
        ({"flags": "('--mesh.data=4',)"}, "flags holds '--mesh.data=4': machines are rented"),
        ({"zone": "'us-east5'"}, "zone is 'us-east5': give --zone"),
        ({"zone": "'us-east5-a --x'"}, "zone is"),
        ({"revision": "'--output=x'"}, "revision is"),
        ({"config": "'/etc/passwd'"}, "config is '/etc/passwd': name it from the repository"),
        ({"config": "'configs/absent.py'"}, "'configs/absent.py' does not exist"),
        ({"config": "'configs/quickstart.py'"}, "configs/quickstart.py: mesh.topology is not set"),
        (
            {"provider": "TpuVm(capacity='cheap')"},
            "provider.capacity is 'cheap': choose 'on_demand'",
        ),
        ({"provider": "TpuVm(secrets=('A=b',))"}, "provider.secrets is 'A=b': give names"),
        ({"provider": "Gke(cluster='Big', image='a/b:c')"}, "provider.cluster is 'Big'"),
        ({"provider": "Gke(cluster='big', image='a b')"}, "provider.image is 'a b'"),
        ({"provider": "Gke(cluster='big', image='a', secret='A')"}, "provider.secret is 'A'"),
        (
            {"provider": "Gke(cluster='big', image='a', capacity=Reserved(reservation='R'))"},
            "provider.reservation is 'R'",
        ),
        (
            {"provider": "ManagedInstanceGroup()", "config": "'configs/gemma3_12b.py'"},
            "mesh 3 x v4:8x16x16: groups hold one slice of v5p; choose TpuVm or Gke",
        ),
        ({"provider": "ManagedInstanceGroup(image_family='X')"}, "provider.image_family is 'X'"),
        (
            {"patience": "Patience(stalled_minutes=-1)"},
            "patience.stalled_minutes is -1: it must be",
        ),
        ({"patience": "Patience(poll_seconds=0)"}, "patience.poll_seconds is 0: it must be at"),
    ],
)
def test_a_field_that_cannot_be_is_named(refused, fields, told):
    assert told in refused(**fields)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--folder", "gs://b/f"), "project is still open: give --project"),
        (("--project", "my-project"), "folder is still open: give --folder gs://BUCKET/FOLDER"),
        ((*FILLED, "--folder", "runs/mine"), "folder is 'runs/mine': give --folder gs://"),
        ((*FILLED, "--project", "X"), "project is 'X'"),
        ((*FILLED, "--zone", "moon"), "zone is 'moon'"),
        ((*FILLED, "--bogus"), "unrecognized arguments: --bogus"),
    ],
)
def test_what_flags_leave_open_or_get_wrong_is_named(refused, flags, told):
    assert told in refused(*flags)


def test_a_mistake_is_told_without_waiting_for_jax():
    program = "import sys, launch.__main__; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_folder_is_no_launch_file(capsys, tmp_path):
    assert main(["create", str(tmp_path), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert told == f"launch: '{tmp_path}' is a folder, not a file: give a Python file\n"


def test_an_unknown_verb_is_named(refused):
    assert "invalid choice: 'creat'" in refused(verb="creat")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_refused_until_project_and_folder_are_set(cloud, capsys, row):
    assert main(["create", row]) == 2
    assert "project is still open" in capsys.readouterr().err
    assert cloud.calls == []


def test_the_project_may_come_from_the_environment(cloud, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "their-project")
    assert main(["create", ROWS[0], "--folder", "gs://bucket/f"]) == 0
    assert "--project=their-project" in cloud.lines[0]


@pytest.fixture
def git(cloud, bash):
    """Runs the system's git, and not the fake, where launch does."""
    (cloud.folder / "git").unlink()

    def run(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *words], check=True)

    return run


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_source_that_is_not_in_git_is_told_before_machines_are_rented(refused, git, dry):
    wanted = "launch from a checkout, with a revision that holds configs/gemma3_27b.py\n"
    told = refused(*FILLED, *dry)
    assert told.startswith("launch: revision is 'HEAD': git says not a git repository")
    assert told.endswith(wanted)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=empty")
    for verb in ("create", "setup", "babysit"):
        told = refused(*FILLED, *dry, verb=verb, revision="'v2'")
        assert told == f"launch: revision is 'v2': git says invalid object name 'v2': {wanted}"
        told = refused(*FILLED, *dry, verb=verb)
        assert "'configs/gemma3_27b.py' exists on disk, but not in 'HEAD'" in told
        assert told.endswith(wanted)


@pytest.mark.parametrize("verb", ["run", "status", "logs", "stop", "delete"])
def test_machines_that_are_there_do_not_ask_for_the_source(cloud, git, verb):
    cloud.answers("worker.sh logs", "")
    assert main([verb, ROWS[0], *FILLED]) == 0


def test_an_image_holds_its_own_source(cloud, git):
    assert main(["create", "tests/launch/examples/gke.py", *FILLED]) == 0


def test_a_mesh_that_is_not_the_slice_is_refused(refused, monkeypatch):
    mesh = MeshConfig(data=4, runtime="many_processes", topology="v5p:4x4x4")
    monkeypatch.setattr("launch.job.Launch.mesh", mesh)
    assert "data 4 x seq 1 = 4 chips, but v5p:4x4x4 has 64" in refused()


def test_hosts_that_would_not_join_are_refused(refused, monkeypatch):
    monkeypatch.setattr("launch.job.Launch.mesh", MeshConfig(data=64, topology="v5p:4x4x4"))
    assert "mesh.runtime is 'one_process': hosts joined need 'many_processes'" in refused()


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("v6e:4x4", "mesh.topology is v6e:4x4: launch rents v4, v5e, v5p"),
        ("v5e:1x1", "launch rents hosts of 4 chips: try v5e:2x2"),
        ("v4:16x16x24", "configs/gemma3_27b.py: mesh.topology is v4:16x16x24: a v4 pod has"),
        ("v5p:8x8x24", "TPU VMs of v5p are rented as"),
    ],
)
def test_slices_that_cannot_be_rented_are_refused(refused, monkeypatch, topology, told):
    data = math.prod(map(int, topology.partition(":")[2].split("x")))
    mesh = MeshConfig(data=data, runtime="many_processes", topology=topology)
    monkeypatch.setattr("launch.job.Launch.mesh", mesh)
    assert told in refused()


@pytest.mark.parametrize(
    ("topology", "flags", "hosts"),
    [
        ("v5e:16x16", ["--accelerator-type=v5litepod-256"], 64),
        ("v4:8x16x16", ["--type=v4", "--topology=8x16x16"], 512),
        ("v5p:16x16x24", ["--accelerator-type=v5p-12288"], 1536),
        ("v5p:2x2x1", ["--accelerator-type=v5p-8"], 1),
    ],
)
def test_a_slice_s_accelerator_type_follows_from_its_topology(topology, flags, hosts):
    rented = Rented.of(Slices.named(topology, 2))
    assert list(rented.type_flags) == flags
    assert (rented.hosts, rented.count) == (hosts, 2)


@pytest.mark.parametrize("shape", V5P_SHAPES.split(", "))
def test_a_shape_that_tpu_vms_name_is_a_slice(shape):
    assert Slices.named(f"v5p:{shape}").sides == shape


@pytest.mark.parametrize("generation", WORDS)
def test_every_variable_of_an_environment_has_its_reason(generation):
    lines = (ENVIRONMENT / f"{generation}.env").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line and not line.startswith("#"):
            assert "=" in line
            assert before.startswith("#") or before.split("=")[0].startswith("LD_PRELOAD")
    assert "xla_" not in "".join(lines)
    assert all("=" in word for word in shlex.split("\n".join(lines), comments=True))


def test_the_rows_are_the_four_of_table_2():
    assert sorted(Path("launch").glob("gemma*.py")) == sorted(map(Path, ROWS))
