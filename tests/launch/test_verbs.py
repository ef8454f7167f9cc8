"""Every verb on every provider, against fakes of gcloud and kubectl."""

import json
import re
import shlex
import stat

import pytest
import yaml

from gemma_train.errors import FaultyHardware, Unrecoverable, UserError
from launch.__main__ import main
from launch.commands import Answer, Command, Shell
from tests.launch.conftest import ROOT
from tests.launch.dry_runs import EXAMPLES, FILLED, ROWS, VERBS, dry_run, golden, transcript

FILES = ROWS + EXAMPLES
GKE = [file for file in EXAMPLES if "group" not in file]
TPU_VM, GROUP = "launch/gemma3_27b.py", EXAMPLES[0]
INSTANCES = json.dumps([{"instanceStatus": "RUNNING"}] * 1536)


def ready(cloud):
    """Machines are there, the run is under way."""
    cloud.answers("queued-resources describe", json.dumps({"state": {"state": "ACTIVE"}}))
    cloud.answers("list-instances gemma3-27b --format=json", INSTANCES)
    cloud.answers("list-instances", "EACH-INSTANCE\n")
    cloud.answers("worker.sh status", "Using ssh batch size of 1.\nrunning\n")
    pools = [{"name": f"gemma3-{n}", "status": "RUNNING"} for n in ["27b-0"]]
    pools += [{"name": f"gemma3-4b-{n}", "status": "RUNNING"} for n in range(8)]
    cloud.answers("node-pools list", json.dumps(pools))
    cloud.answers("get jobset", json.dumps({"spec": {}, "status": {}}))


@pytest.mark.parametrize("file", FILES)
def test_a_dry_run_prints_what_the_golden_file_holds(cloud, file):
    assert transcript(file) == golden(file).read_text()


@pytest.mark.parametrize("file", FILES)
def test_a_dry_run_calls_nothing(cloud, file):
    for verb in (*VERBS, "babysit"):
        dry_run(verb, file)
    assert cloud.calls == []
    assert not (cloud.folder.parent / "build").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("file", [TPU_VM, *EXAMPLES])
def test_a_verb_calls_exactly_what_its_dry_run_prints(cloud, monkeypatch, file, verb):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    printed = re.sub(r"^# build/.*\n", "", dry_run(verb, file), flags=re.MULTILINE)
    ready(cloud)
    assert main([verb, file, *FILLED]) == 0
    called = []
    for call in cloud.calls:
        line, stdin = shlex.join(call["words"]), call["stdin"].rstrip()
        called.append(f"{line} <<'EOF'\n{stdin}\nEOF" if stdin else line)
    assert "\n".join(called) == printed.rstrip()
    assert "s3cret" not in "".join(cloud.lines)


def test_status_tells_machines_and_process(cloud, capsys):
    ready(cloud)
    main(["status", TPU_VM, *FILLED])
    assert "gemma3-27b: machines ready (ACTIVE), gemma-train running" in capsys.readouterr().out
    main(["status", EXAMPLES[1], *FILLED])
    assert "gemma3-4b: machines ready (RUNNING), gemma-train running" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "part", "reply", "told"),
    [
        (TPU_VM, "describe", ("", "ERROR: NOT_FOUND: no such", 1), "absent (no queued resource)"),
        (TPU_VM, "describe", ("", "ERROR: PERMISSION_DENIED", 1), "unknown (ERROR: PERM"),
        (GROUP, "list-instances", ("", "resource was not found", 1), "absent (no instance group)"),
        (GROUP, "list-instances", "[]", "waiting (0 of 1536"),
        (GROUP, "list-instances", INSTANCES.replace("RUNNING", "STOPPED", 1), "lost (1535 of"),
        (GKE[0], "node-pools", "[]", "absent (no node pool)"),
        (GKE[1], "node-pools", '[{"name": "gemma3-27b-0", "status": "ERROR"}]', "lost (ERROR)"),
        (GKE[0], "node-pools", '[{"name": "gemma3-4b-0", "status": "RUNNING"}]', "lost (1 of 8"),
        (
            GKE[1],
            "node-pools",
            '[{"name": "gemma3-27b-0", "status": "PROVISIONING"}]',
            "waiting (PROVISIONING)",
        ),
    ],
)
def test_status_tells_machines_that_are_not_ready(cloud, capsys, file, part, reply, told):
    cloud.answers(part, reply)
    assert main(["status", file, *FILLED]) == 0
    assert f"machines {told}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (("", 'error: context "gke_x" does not exist', 1), "not set up"),
        (("", 'Error (NotFound): jobsets "gemma3-27b" not found', 1), "set up"),
        (("", "Unable to connect to the server", 1), "unreachable"),
        ({"spec": {"suspend": True}}, "stopped by hand"),
        ({"spec": {}}, "running"),
        ("Completed", "ended, exit code 0"),
        ("Failed", "ended, exit code 1"),
        ("FailJobSetFailurePolicyAction", "ended, exit code 2"),
    ],
)
def test_a_jobset_tells_the_process(cloud, capsys, held, told):
    cloud.answers("node-pools", '[{"name": "gemma3-27b-0", "status": "RUNNING"}]')
    if isinstance(held, str):
        kind = "Completed" if held == "Completed" else "Failed"
        condition = {"type": kind, "status": "True", "reason": held}
        held = {"spec": {}, "status": {"conditions": [condition]}}
    cloud.answers("get jobset", json.dumps(held) if isinstance(held, dict) else held)
    cloud.answers("get pods", '{"items": []}')  # the JobSet's rule alone is known
    main(["status", GKE[1], *FILLED])
    assert f"gemma-train {told}\n" in capsys.readouterr().out


def test_secrets_travel_in_a_private_file_that_is_gone_afterwards(cloud, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "it's s3cret")
    cloud.answers("list-instances", "one\ntwo\n")
    assert main(["setup", GROUP, *FILLED]) == 0
    copies = [call["private"] for call in cloud.calls if "scp" in call["words"]]
    assert len(copies) == 2
    for private in copies:
        [(mode, text)] = private.values()
        assert mode == oct(stat.S_IRUSR | stat.S_IWUSR)
        assert "WANDB_API_KEY=it's s3cret" in shlex.split(text)
    assert not list(cloud.folder.parent.glob("build/**/worker.env"))


def test_a_secret_that_is_not_set_is_named(cloud, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["setup", GROUP, *FILLED]) == 2
    assert "provider.secrets names WANDB_API_KEY, not set" in capsys.readouterr().err


def test_every_instance_of_a_group_is_reached(cloud):
    cloud.answers("list-instances", "one\ntwo\nthree\n")
    assert main(["stop", GROUP, *FILLED]) == 0
    assert sorted(call["words"][3] for call in cloud.calls[1:]) == ["one", "three", "two"]


def test_what_is_gone_already_counts_as_deleted(cloud):
    gone = ("", "ERROR: NOT_FOUND: Resource not found", 1)
    cloud.answers("delete", gone)
    for file in (TPU_VM, *EXAMPLES):
        assert main(["delete", file, *FILLED]) == 0


def test_a_failure_of_the_cloud_is_one_line_with_its_reason(cloud, capsys):
    cloud.answers("create", ("", "Traceback\nERROR: Quota 'TPUV5P' exceeded.\n", 1))
    assert main(["create", TPU_VM, *FILLED]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "queued-resources create" in told
    assert "failed (1): ERROR: Quota 'TPUV5P' exceeded." in told


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "ERROR: quota exceeded\n\nRecommendation: try ssh --troubleshoot\n",
            "ERROR: quota exceeded",
        ),
        (
            "ERROR: (gcloud) Could not fetch:\n - no quota\n",
            "ERROR: (gcloud) Could not fetch: - no quota",
        ),
        ("ERROR: first\nERROR: last\n", "ERROR: last"),
        ("one\ntwo\n", "two"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_of_a_failure_is_its_last_error(said, reason):
    assert Answer(code=1, out="", error=said).reason == reason


@pytest.mark.parametrize("file", [TPU_VM, *EXAMPLES])
def test_logs_end_with_the_code_of_what_follows_them(cloud, file):
    cloud.answers("value(name)", "one\n")
    cloud.answers("logs", ("", "Connection closed", 255))
    assert main(["logs", file, *FILLED]) == 255


def test_a_regional_cluster_has_its_nodes_in_the_one_zone(cloud, tmp_path):
    file = tmp_path / "regional.py"
    file.write_text((ROOT / GKE[0]).read_text().replace("Gke(", "Gke(regional=True, "))
    for verb in ("create", "setup", "run"):
        assert main([verb, str(file), *FILLED]) == 0
    pool, access, apply = cloud.lines[0], cloud.lines[-4], cloud.lines[-1]
    assert "--location=us-west4 " in pool
    assert "--node-locations=us-west4-b " in pool
    assert "--location=us-west4 " in access
    assert "--context=gke_my-project_us-west4_tpus" in apply


@pytest.mark.parametrize("verb", ["create", "logs"])
def test_a_missing_program_is_named(cloud, capsys, verb):
    (cloud.folder / "gcloud").unlink()
    assert main([verb, TPU_VM, *FILLED]) == 2
    assert "launch: gcloud is not on the PATH: install it" in capsys.readouterr().err


def test_a_command_that_hangs_is_ended_with_all_that_it_started(bash):
    hangs = Command(words=("bash", "-c", "sleep 60 & wait"))
    answer = Shell().read(hangs, seconds=0.2)
    assert (answer.code, answer.reason) == (124, "no answer within 0.2 s")


@pytest.mark.parametrize("file", GKE)
def test_the_jobset_holds_the_config_s_slices_and_hosts(cloud, file):
    assert main(["run", file, *FILLED]) == 0
    jobset = yaml.safe_load(cloud.calls[-1]["stdin"])
    jobs = {job["name"]: job for job in jobset["spec"]["replicatedJobs"]}
    slices, hosts, chips = (8, 64, "16x16") if "gke" in file else (1, 1536, "16x16x24")
    job = jobs["slice" if "gke" in file else "worker"]
    assert job["replicas"] == slices
    assert job["template"]["spec"]["completions"] == hosts
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == chips
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize("file", GKE)
def test_a_jobset_never_restarts_what_would_end_the_same_way(cloud, file):
    main(["run", file, *FILLED])
    spec = yaml.safe_load(cloud.calls[-1]["stdin"])["spec"]
    [rule] = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    [rule] = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    codes = [error.exit_code for error in (UserError, Unrecoverable, FaultyHardware)]
    assert rule["onExitCodes"]["values"] == codes == [2, 3, 4]
