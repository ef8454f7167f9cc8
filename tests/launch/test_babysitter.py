"""The babysitter's life cycle, against fakes of gcloud and kubectl; time and chance injected."""

import json
from dataclasses import replace

import pytest

from gemma_train.definition import load_definition
from gemma_train.errors import FaultyHardware, Stalled, Unrecoverable, UserError
from launch.__main__ import fleet_of
from launch.babysitter import Babysitter
from launch.commands import Shell
from launch.job import Launch, Patience
from tests.launch.dry_runs import EXAMPLES

FOLDER = "gs://my-bucket/gemma"
FINISHED = f"{FOLDER}/summary.json\n"
ABSENT = ("", "ERROR: NOT_FOUND: queued resource", 1)
UNREACHABLE = ("", "ssh: connect to host: Connection timed out", 255)
EMPTY = ("", "bash: worker.sh: No such file or directory", 127)


def state(name: str) -> str:
    return json.dumps({"state": {"state": name}})


class Nap:
    """Sleeps at once, and ends a test that would sit for ever."""

    def __init__(self):
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        assert len(self.seconds) < 200, "the babysitter sits for ever"


@pytest.fixture
def sit(cloud, monkeypatch):
    """Sits until the end: (exit code, what was said, seconds slept, verbs called)."""

    def run(file: str = "launch/gemma3_27b.py", **patience: float):
        monkeypatch.setenv("WANDB_API_KEY", "s3cret")
        found = load_definition(file, "launch", Launch)
        launch = found.filled(project="my-project", folder=FOLDER).checked()
        launch = replace(launch, patience=Patience(**patience))
        said, nap = [], Nap()
        shell = Shell(say=said.append)
        fleet = fleet_of(launch, shell)
        sitter = Babysitter(
            launch=launch,
            fleet=fleet,
            shell=shell,
            sleep=nap,
            clock=lambda: sum(nap.seconds),
            chance=lambda: 1.0,
        )
        try:
            code = sitter.sit()
        except UserError as error:
            code = str(error)
        return code, [line.split(": ", 1)[1] for line in said], nap.seconds, verbs(cloud)

    return run


def verbs(cloud) -> list[str]:
    """What was done, without the looks: create, delete, setup, run (of the first machine)."""
    found = []
    for line in cloud.lines:
        for verb, sign in {
            "create": "queued-resources create",
            "delete": "queued-resources delete",
            "setup": "worker.sh setup",
            "save": "worker.sh save",
            "stop": "worker.sh stop",
            "run": "worker.sh start",
        }.items():
            if sign in line:
                found.append(verb)
    return found


def test_from_nothing_to_a_finished_run(cloud, sit):
    waiting = [state(name) for name in ("WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING")]
    cloud.answers("describe", ABSENT, *waiting, state("ACTIVE"))
    cloud.answers("worker.sh status", EMPTY, "running\n", "running\n", "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    code, said, slept, done = sit()
    assert code == 0
    assert done == ["create", "setup", "run"]
    assert said == [
        "machines absent (no queued resource)",
        "create",
        "machines waiting (WAITING_FOR_RESOURCES)",
        "machines waiting (PROVISIONING)",
        "machines ready (ACTIVE), gemma-train not set up",
        "setup",
        "run",
        "machines ready (ACTIVE), gemma-train running",
        "machines ready (ACTIVE), gemma-train ended, exit code 0",
        f"finished: {FOLDER}/summary.json is there; delete the machines",
    ]
    assert set(slept) == {60}


@pytest.mark.parametrize("end", ["SUSPENDING", "SUSPENDED", "FAILED"])
def test_a_request_that_never_comes_back_is_deleted_and_made_anew(cloud, sit, end):
    cloud.answers("describe", state("ACTIVE"), state(end), ABSENT, state("ACTIVE"))
    cloud.answers("worker.sh status", "running\n", EMPTY, "running\n", "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    code, said, _, done = sit()
    assert code == 0
    assert done == ["delete", "create", "setup", "run"]
    assert f"machines lost ({end}): attempt 1 of 5 in 60 s" in said


def test_a_crash_is_started_again_on_machines_set_up_again(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "running\n", "exit 1\n", "running\n", "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    code, said, _, done = sit()
    assert code == 0
    assert done == ["setup", "run"]
    assert "ended with exit code 1: attempt 1 of 5 in 60 s" in said


def test_a_mistake_in_the_config_ends_it_at_once(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 2\n")
    code, said, slept, done = sit()
    assert (code, done, slept) == (2, [], [])
    assert said[-1] == "exit code 2, the config is at fault: not started again; see logs"


def test_a_run_that_has_tried_what_it_may_is_not_started_again(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", f"exit {Unrecoverable.exit_code}\n")
    code, said, slept, done = sit()
    assert (code, done, slept) == (3, [], [])
    assert said[-1] == "exit code 3, the run has tried what it may: not started again; see logs"


def test_machines_that_gave_two_results_are_replaced(cloud, sit):
    cloud.answers("describe", state("ACTIVE"), ABSENT, state("ACTIVE"))
    cloud.answers("worker.sh status", f"exit {FaultyHardware.exit_code}\n", EMPTY, "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    code, said, slept, done = sit()
    assert (code, done) == (0, ["delete", "create", "setup", "run"])
    told = "machines that gave two results for one program (exit code 4): attempt 1 of 5 in 60 s"
    assert told in said and set(slept) == {60}


def test_machines_that_stay_faulty_however_often_they_are_replaced_end_it(cloud, sit):
    cloud.answers("describe", *[state("ACTIVE"), ABSENT] * 5, state("ACTIVE"))
    cloud.answers("worker.sh status", f"exit {FaultyHardware.exit_code}\n")
    code, _, slept, done = sit()
    assert "(exit code 4); given up after 5 attempts without a new checkpoint" in code
    assert done == ["delete", "create"] * 5
    assert [seconds for seconds in slept if seconds != 60] == [120, 240, 480, 960]


def test_a_run_that_hung_is_started_again(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", f"exit {Stalled.exit_code}\n", "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    code, said, _, done = sit()
    assert (code, done) == (0, ["setup", "run"])
    told = "ended with exit code 5, for something gave no answer in time: attempt 1 of 5 in 60 s"
    assert told in said


def test_a_run_that_saved_and_ended_before_its_last_step_goes_on(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 0\n")
    cloud.answers("summary.json", ("", "One or more URLs matched no objects.", 1), FINISHED)
    code, said, _, done = sit()
    assert (code, done) == (0, ["setup", "run"])
    assert "saved and ended: attempt 1 of 5 in 60 s" in said


def test_a_run_stopped_by_hand_is_left_alone(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "stopped\n")
    code, said, _, done = sit()
    assert (code, done) == (0, [])
    assert said[-1] == "stopped by hand; the machines are billed until delete"


def test_attempts_without_progress_end_it_after_ever_longer_waits(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 1\n")
    cloud.answers("checkpoints/", f"{FOLDER}/checkpoints/1000/\n")
    code, _, slept, done = sit()
    assert "given up after 5 attempts without a new checkpoint" in code
    assert [seconds for seconds in slept if seconds != 60] == [120, 240, 480, 960]
    assert done == ["setup", "run"] * 5


def test_chance_halves_a_wait_at_most(cloud):
    launch = load_definition("launch/gemma3_1b.py", "launch", Launch)
    nap = Nap()
    sitter = Babysitter(
        launch=launch, fleet=None, shell=Shell(say=lambda text: None), sleep=nap, chance=lambda: 0.0
    )
    for _ in range(5):
        sitter._count("crash")
    assert nap.seconds == [30, 60, 120, 240, 480]


def test_a_new_checkpoint_forgives_earlier_attempts(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *["exit 1\n"] * 12, "exit 2\n")
    steps = [f"{FOLDER}/checkpoints/{step}/\n" for step in range(1000, 13000, 1000)]
    cloud.answers("checkpoints/", *steps)
    code, said, _, _ = sit()
    assert code == 2
    assert said.count("ended with exit code 1: attempt 1 of 5 in 60 s") == 12


def test_machines_that_do_not_answer_are_given_up_after_a_while(cloud, sit):
    cloud.answers("describe", *[state("ACTIVE")] * 12, ABSENT, state("ACTIVE"))
    cloud.answers("worker.sh status", "running\n", *[UNREACHABLE] * 11, "exit 2\n")
    cloud.answers("checkpoints/", listed(1000))
    code, said, _, done = sit()
    assert (code, done) == (2, ["delete", "create"])
    assert "machines unreachable: attempt 1 of 5 in 60 s" in said


@pytest.mark.parametrize("before", [[], ["running\n"]], ids=["a new babysitter", "an old one"])
@pytest.mark.parametrize(
    "bucket",
    [
        [f"{FOLDER}/checkpoints/{step}/\n" for step in (1000, 1000, 1200, 1400)],
        [("", "ERROR: could not resolve host", 1)],
    ],
    ids=["newer checkpoints", "a bucket that does not answer"],
)
def test_a_run_that_may_go_on_is_not_deleted_for_its_silence(cloud, sit, before, bucket):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *before, *[UNREACHABLE] * 11, "exit 2\n")
    cloud.answers("checkpoints/", *(bucket if before else bucket[-3:]))
    code, said, _, done = sit()
    assert (code, done) == (2, [])
    assert "unreachable, yet for all that is known the run goes on: wait" in said


def test_a_provider_that_does_not_answer_is_asked_again_and_nothing_is_made(cloud, sit):
    offline = ("", "ERROR: could not resolve host", 1)
    cloud.answers("describe", *[offline] * 30, state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 2\n")
    code, said, _, done = sit()
    assert (code, done) == (2, [])
    assert said[0] == "machines unknown (ERROR: could not resolve host)"


def test_a_create_that_is_refused_is_tried_again_up_to_the_limit(cloud, sit):
    cloud.answers("describe", ABSENT)
    cloud.answers("queued-resources create", ("", "ERROR: quota exceeded", 1))
    code, _, _, done = sit()
    assert "quota exceeded; given up after 5 attempts" in code
    assert done == ["create"] * 6


def test_a_group_that_lost_an_instance_is_made_anew(cloud, sit):
    group = [{"instanceStatus": "RUNNING"}] * 1536
    lost = json.dumps([{"instanceStatus": "TERMINATED"}, *group[1:]])
    gone = ("", "The resource was not found", 1)
    cloud.answers("--format=json", json.dumps(group), lost, gone, json.dumps(group))
    cloud.answers("list-instances", "one\n")
    cloud.answers("worker.sh status", "running\n", "exit 0\n")
    cloud.answers("summary.json", FINISHED)
    assert sit(EXAMPLES[0])[0] == 0
    made = [line for line in cloud.lines if " delete " in line or " create " in line]
    kinds = ("instance-groups managed", "resource-policies", "instance-templates")
    assert [sum(kind in line for line in made) for kind in kinds] == [2, 3, 3]
    assert "instance-groups managed delete" in made[0]


def test_a_group_that_was_refused_can_be_asked_for_again(cloud, sit):
    gone = ("", "The resource was not found", 1)
    running = json.dumps([{"instanceStatus": "RUNNING"}] * 1536)
    cloud.answers("--format=json", gone, gone, running)
    cloud.answers("list-instances", "one\n")
    cloud.answers("worker.sh status", "exit 2\n")
    cloud.answers("instance-groups managed create", ("", "ERROR: quota exceeded", 1), "")
    assert sit(EXAMPLES[0])[0] == 2
    for kind in ("instance-templates", "resource-policies"):
        acts = [
            line.split()[3] for line in cloud.lines if line.startswith(f"gcloud compute {kind}")
        ]
        assert acts == ["delete", "create", "delete", "create"]


def test_a_failed_jobset_is_applied_anew_and_a_config_error_is_not(cloud, sit):
    def jobset(reason: str) -> str:
        condition = {"type": "Failed", "status": "True", "reason": reason}
        return json.dumps({"spec": {}, "status": {"conditions": [condition]}})

    pools = [{"name": f"gemma3-4b-{number}", "status": "RUNNING"} for number in range(8)]
    cloud.answers("node-pools list", json.dumps(pools))
    last = jobset("FailJobSetFailurePolicyAction")
    cloud.answers("get pods", pods(137, 2))
    cloud.answers("get jobset", '{"spec": {}}', jobset("ReachedMaxRestarts"), last)
    assert sit(EXAMPLES[1])[0] == 2
    applied = [line for line in cloud.lines if " apply " in line]
    assert len(applied) == 1


def pods(*codes: int) -> str:
    """Pods as JSON, of which one still runs and the others have ended with these codes."""
    ends = [{"running": {}}, *({"terminated": {"exitCode": code}} for code in codes)]
    return json.dumps(
        {"items": [{"status": {"containerStatuses": [{"state": end}]}} for end in ends]}
    )


def test_node_pools_that_gave_two_results_are_made_anew(cloud, sit):
    pools = [{"name": f"gemma3-4b-{number}", "status": "RUNNING"} for number in range(8)]
    failed = {"type": "Failed", "status": "True", "reason": "FailJobSetFailurePolicyAction"}
    completed = {"type": "Completed", "status": "True"}
    found = [json.dumps({"status": {"conditions": [one]}}) for one in (failed, completed)]
    cloud.answers("node-pools list", *[json.dumps(pools)] * 2, "[]", json.dumps(pools))
    cloud.answers("get jobset", found[0], *found)
    cloud.answers("get pods", ("", "Unable to connect to the server", 1), pods(137, 4, 137))
    cloud.answers("summary.json", FINISHED)
    cloud.answers("checkpoints/", listed(1000))
    code, said, _, _ = sit(EXAMPLES[1])
    assert code == 0
    told = "machines that gave two results for one program (exit code 4): attempt 1 of 5 in 60 s"
    assert told in said
    made = [
        line.split()[3] for line in cloud.lines if "node-pools" in line and " list " not in line
    ]
    assert made == ["delete"] * 8 + ["create"] * 8


@pytest.mark.parametrize("word", ["ACCEPTED", "CREATING", "DELETING", "A_NEW_WORD"])
def test_a_state_that_is_not_an_end_is_waited_for(cloud, sit, word):
    cloud.answers("describe", state(word), state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 2\n")
    _, said, _, done = sit()
    assert said[0] == f"machines waiting ({word})"
    assert done == []


def test_waits_have_a_longest(cloud):
    launch = load_definition("launch/gemma3_1b.py", "launch", Launch)
    patience = Patience(attempts_without_progress=9)
    nap = Nap()
    sitter = Babysitter(
        launch=replace(launch, patience=patience),
        fleet=None,
        shell=Shell(say=lambda text: None),
        sleep=nap,
        chance=lambda: 1.0,
    )
    for _ in range(9):
        sitter._count("crash")
    assert nap.seconds[-3:] == [3600, 3600, 3600]


def test_a_run_is_not_started_where_setup_failed(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "exit 1\n", "not a word\n", "exit 2\n")
    cloud.answers("worker.sh setup", ("", "E: Could not get lock", 100))
    code, said, _, done = sit()
    assert (code, done) == (2, ["setup"])
    assert any("Could not get lock: attempt 2 of 5 in 120 s" in line for line in said)


def listed(step: int) -> str:
    return f"{FOLDER}/checkpoints/{step}/\n"


def test_a_run_that_hangs_is_told_to_stop_and_then_started_anew(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *["running\n"] * 16, "exit 2\n")
    cloud.answers("checkpoints/", listed(1000))
    code, said, slept, done = sit(poll_seconds=600, saving_seconds=1200)
    assert (code, done) == (2, ["save", "setup", "run"])
    stopped = said.index("no newer checkpoint for too long: save and end")
    assert said[stopped + 1] == "no newer checkpoint for 120 minutes: attempt 1 of 5 in 60 s"
    notice, save, attempt, start, look = [600] * 12, [600] * 2, [60], [600], [600]
    assert slept == notice + save + attempt + start + look


def test_a_run_that_hangs_again_and_again_is_given_up(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "running\n")
    cloud.answers("checkpoints/", listed(1000))
    code, _, slept, done = sit(poll_seconds=300, stalled_minutes=10)
    assert "no newer checkpoint for 10 minutes; given up after 5 attempts" in code
    assert done == [*["save", "setup", "run"] * 5, "save"]
    assert sum(slept) < 60 * (6 * (10 + 10 + 5) + 1 + 2 + 4 + 8 + 16)


def test_a_run_that_saves_on_being_stopped_was_only_slow(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *["running\n"] * 11, "exit 0\n", "exit 2\n")
    cloud.answers("checkpoints/", *[listed(1000)] * 11, listed(1200))
    code, said, slept, done = sit(stalled_minutes=10)
    assert (code, done) == (2, ["save", "setup", "run"])
    assert len(slept) == 10 + 1 + 1  # no wait for what has ended
    assert said.count("no newer checkpoint for 10 minutes: attempt 1 of 5 in 60 s") == 1


def test_a_run_whose_checkpoints_grow_is_left_alone(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *["running\n"] * 25, "exit 2\n")
    cloud.answers("checkpoints/", *[listed(minute // 9) for minute in range(25)])
    assert sit(stalled_minutes=10)[3] == []


@pytest.mark.parametrize(
    ("minutes", "answer"),
    [(0, listed(1000)), (10, ("", "ERROR: could not resolve host", 1))],
    ids=["asked never to", "a bucket that does not answer"],
)
def test_nothing_is_stopped_without_a_reason(cloud, sit, minutes, answer):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", *["running\n"] * 12, "exit 2\n")
    cloud.answers("checkpoints/", answer)
    assert sit(poll_seconds=600, stalled_minutes=minutes)[3] == []


def test_a_first_step_that_never_comes_is_a_stall_too(cloud, sit):
    cloud.answers("describe", state("ACTIVE"))
    cloud.answers("worker.sh status", "ready\n", *["running\n"] * 21, "exit 2\n")
    cloud.answers("checkpoints/", ("", "ERROR: One or more URLs matched no objects.", 1))
    assert sit(stalled_minutes=10)[3] == ["run", "save", "setup", "run"]


def test_a_jobset_that_hangs_is_deleted_not_suspended_as_a_person_would(cloud, sit):
    pools = [{"name": f"gemma3-4b-{number}", "status": "RUNNING"} for number in range(8)]
    cloud.answers("node-pools list", json.dumps(pools))
    failed = {"type": "Failed", "status": "True", "reason": "FailJobSetFailurePolicyAction"}
    ended = json.dumps({"spec": {}, "status": {"conditions": [failed]}})
    gone = ("", 'Error (NotFound): jobsets "gemma3-4b" not found', 1)
    cloud.answers("get jobset", *['{"spec": {}}'] * 11, gone, ended)
    cloud.answers("get pods", pods(2))
    code, _, _, _ = sit(EXAMPLES[1], stalled_minutes=10)
    assert code == 2
    assert not [line for line in cloud.lines if " patch " in line]
    assert sum("--cascade=foreground" in line for line in cloud.lines) == 1
    assert sum(" apply " in line for line in cloud.lines) == 1
