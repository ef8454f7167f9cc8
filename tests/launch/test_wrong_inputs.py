"""A mistake in a launch file or on the command line: one line that says what would do."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from gemma_train.errors import UserError
from gemma_train.mesh import MeshConfig
from launch.__main__ import main
from launch.job import ENVIRONMENT
from launch.topology import GENERATIONS, TpuSlice
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
        file.write_text(f"from launch.job import *\n\nlaunch = Launch({body})\n")
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
        ({"zone": "'us-east5'"}, "zone is 'us-east5': give --zone"),
        ({"zone": "'us-east5-a --x'"}, "zone is"),
        ({"revision": "'--output=x'"}, "revision is"),
        ({"config": "'/etc/passwd'"}, "config is '/etc/passwd': name it from the repository"),
        ({"config": "'configs/absent.py'"}, "'configs/absent.py' does not exist"),
        ({"config": "'configs/quickstart.py'"}, "names no mesh.topology"),
        ({"provider": "TpuVm(capacity='cheap')"}, "provider.capacity is 'cheap': choose one of"),
        ({"provider": "TpuVm(secrets=('A=b',))"}, "provider.secrets is 'A=b': give names"),
        ({"provider": "Gke(cluster='Big', image='a/b:c')"}, "provider.cluster is 'Big'"),
        ({"provider": "Gke(cluster='big', image='a b')"}, "provider image is 'a b'"),
        ({"provider": "Gke(cluster='big', image='a', secret='A')"}, "provider.secret is 'A'"),
        (
            {"provider": "Gke(cluster='big', image='a', capacity=Reserved(reservation='R'))"},
            "provider.capacity.reservation is 'R'",
        ),
        (
            {"provider": "ManagedInstanceGroup()", "config": "'configs/gemma3_12b.py'"},
            "mesh 3 x v4:8x16x16: groups hold one slice of v5p; choose TpuVm or Gke",
        ),
        ({"provider": "ManagedInstanceGroup(image_family='X')"}, "provider.image_family is 'X'"),
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


def test_a_mesh_that_is_not_the_slice_is_refused(refused, monkeypatch):
    mesh = MeshConfig(data=4, runtime="many_processes", topology="v5p:4x4x4")
    monkeypatch.setattr("launch.job.Launch.mesh", mesh)
    assert "are 64 chips, but replica x data x seq are 4 devices" in refused()


def test_hosts_that_would_not_join_are_refused(refused, monkeypatch):
    monkeypatch.setattr("launch.job.Launch.mesh", MeshConfig(data=64, topology="v5p:4x4x4"))
    assert "mesh.runtime is 'one_process': hosts joined need 'many_processes'" in refused()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v9:4x4", "launch knows v4, v5e, v5p"),
        ("v5p", "give 3 sides, as in v5p:4x4x4"),
        ("v5e:4x4x4", "give 2 sides"),
        ("v4:4xax4", "give 3 sides"),
        ("v4:16x16x24", "a slice of v4 has at most 4096"),
        ("v5e:16x32", "a slice of v5e has at most 256"),
        ("v5e:4x16", "v5e is rented as"),
        ("v4:4x4x6", "every side must be a multiple of 4"),
        ("v5p:0x4x4", "0 chips"),
    ],
)
def test_a_slice_that_cannot_be_rented_is_refused(text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        TpuSlice.read(text)


@pytest.mark.parametrize(
    ("text", "flags", "hosts"),
    [
        ("v5e:16x16", ["--accelerator-type=v5litepod-256"], 64),
        ("v4:8x16x16", ["--type=v4", "--topology=8x16x16"], 512),
        ("v5p:16x16x24", ["--accelerator-type=v5p-12288"], 1536),
        ("v5p:2x2x1", ["--accelerator-type=v5p-8"], 1),
    ],
)
def test_a_slice_s_accelerator_type_follows_from_its_topology(text, flags, hosts):
    found = TpuSlice.read(text)
    assert list(found.type_flags) == flags
    assert found.hosts == hosts


def test_tpu_vms_of_v5p_come_in_their_own_shapes_only():
    with pytest.raises(UserError, match="TPU VMs of v5p are rented as"):
        _ = TpuSlice.read("v5p:8x8x24").type_flags


@pytest.mark.parametrize("generation", GENERATIONS)
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
