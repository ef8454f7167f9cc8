"""What the time of a run went to, over its lives, in a world whose clock the test winds."""

import subprocess
import sys

import pytest

from gemma_train.metrics import observer as module
from gemma_train.metrics.goodput import CATEGORIES, Goodput, Ledger, gone_back, lives, name
from gemma_train.metrics.observer import Observer
from gemma_train.metrics.recorder import read

UNIX = 1_800_000_000.0


class World:
    """Its seconds, which a run reads from its clocks, and the run that lives in it."""

    def __init__(self, folder: str):
        self.folder, self.seconds = folder, 64.0

    def __call__(self) -> float:
        return self.seconds

    def begins(self, start_step: int, *, init: float) -> Observer:
        """A process that was started `init` seconds before its loop."""
        began, self.seconds = self.seconds, self.seconds + init
        return Observer(
            self.folder,
            start_step=start_step,
            total_steps=100,
            tokens_per_step=10,
            flops_per_token=1.0,
            devices=1,
            device_peak=None,
            tensorboard=False,
            active=True,
            began=began,
        )

    def steps(self, run: Observer, *numbers: int, wait: float = 0.5, work: float = 1.5) -> None:
        """Steps whose numbers have arrived when they are flushed: `wait` for data, then `work`."""
        for number in numbers:
            with run.clock.waiting_for_data():
                self.seconds += wait
            self.seconds += work
            run.step(number, {"loss": 1.0})
            run._finish_pending()

    def pauses(self, run: Observer, category, seconds: float) -> None:
        run.flush()
        with run.clock.paused(category):
            self.seconds += seconds


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    world = World(str(tmp_path))
    monkeypatch.setattr("time.time", lambda: UNIX + world.seconds)
    real = module.StepClock
    monkeypatch.setattr(module, "StepClock", lambda tokens, began: real(tokens, world, began))
    return world


def found(world: World) -> Goodput:
    goodput = Goodput.of(read(world.folder))
    assert goodput is not None
    return goodput


def test_what_a_life_took_sums_to_its_wall_time(world):
    with world.begins(0, init=8.0) as run:
        world.steps(run, 1, work=32.0)
        world.steps(run, 2, 3)
        world.pauses(run, "checkpoint", 4.0)
        world.pauses(run, "evaluation", 16.0)
        world.pauses(run, "restore", 2.0)
        world.steps(run, 4)
        world.pauses(run, "other", 1.0)
    (account,) = lives(read(world.folder)).values()
    assert {one: account[name(one)] for one in CATEGORIES} == {
        "init": 8.0,
        "compile": 32.0,
        "step": 4.5,
        "data_wait": 2.0,
        "checkpoint": 4.0,
        "evaluation": 16.0,
        "restore": 2.0,
        "other": 1.0,
    }
    assert found(world).wall == world.seconds - 64.0 == account["time"] - account["began"]
    assert found(world).share == 4.5 / 69.5


def test_an_account_never_counts_a_moment_twice_or_not_at_all(world):
    """In whatever order time is turned from one category to the next, also inside each other."""
    ledger = Ledger(world, began=32.0)
    for turn, outer in enumerate(CATEGORIES):
        ledger.turn(outer)
        world.seconds += 1.0
        for inner in CATEGORIES:
            with ledger.within(inner):
                world.seconds += 2.0**-turn
        assert sum(ledger.seconds.values()) == world.seconds - 32.0
    with pytest.raises(OSError), ledger.within("checkpoint"):
        raise OSError
    before = ledger.seconds["other"]
    world.seconds += 1.0
    assert ledger.seconds["other"] == before + 1.0


def test_a_killed_life_has_its_last_account_its_steps_and_its_lost_work(world):
    run = world.begins(0, init=8.0)
    world.steps(run, 1, work=32.0)
    world.steps(run, 2, 3, 4)
    world.pauses(run, "checkpoint", 4.0)
    world.steps(run, 5, 6, 7, 8)  # killed here: of step 8 nothing was written
    killed = UNIX + world.seconds - 2.0
    world.seconds += 100.0
    with world.begins(4, init=16.0) as run:
        world.steps(run, 5, work=24.0)
        world.steps(run, 6, 7, 8)
    goodput = found(world)
    assert goodput.parts == {
        "training": 1.5 * 6,
        "lost work": 1.5 * 3,
        "starting": 8.0,
        "compiling": 32.0,
        "recovery": 16.0 + 24.0,
        "waiting for data": 0.5 * 11,
        "checkpoints": 4.0,
    }
    first, second = lives(read(world.folder)).values()
    assert first["time"] == killed and second["began"] == killed + 102.0
    assert (goodput.lives, goodput.between) == (2, 102.0)
    assert goodput.told == (
        "goodput 8.7 % of 1 min 43 s: recovery 38.8 %, compiling 31.1 %, starting 7.8 %, "
        "waiting for data 5.3 %, lost work 4.4 %, checkpoints 3.9 %; "
        "2 lives, 1 min 42 s between them"
    )


def test_a_kill_after_the_first_step_that_follows_a_pause_loses_nothing_of_it(world):
    run = world.begins(0, init=8.0)
    world.steps(run, 1, 2)
    world.pauses(run, "evaluation", 16.0)
    world.steps(run, 3)
    assert found(world).wall == world.seconds - 64.0
    assert found(world).parts["evaluation"] == 16.0


def test_steps_lost_by_two_lives_are_counted_once_each(world):
    """The second goes on from 4, the third, whose checkpoint of 4 was damaged, from 2."""
    run = world.begins(0, init=1.0)
    world.steps(run, 1, 2, 3, 4)
    world.pauses(run, "checkpoint", 1.0)
    world.steps(run, 5, 6, 7)
    run = world.begins(4, init=1.0)
    world.steps(run, 5, 6, 7)
    world.begins(4, init=1.0)  # a life that came to nothing leaves nothing
    with world.begins(2, init=1.0) as run:
        world.steps(run, 3)
    kept = read(world.folder)
    assert [line["step"] for line in kept if line["kind"] == "train"] == [1, 2, 3]
    # 5 and 6 of the first; 3 and 4 of the first, and 6 of the second, whose 5 had compiled.
    assert found(world).parts["lost work"] == 1.5 * (2 + 2 + 1)
    assert found(world).lives == 3


def test_going_back_within_a_life_loses_its_steps(world):
    with world.begins(0, init=1.0) as run:
        world.steps(run, 1, 2, 3, 4, 5)
        world.pauses(run, "restore", 8.0)
        run.go_back(2)
        world.steps(run, 3, 4)
        run.go_back(3)
        world.steps(run, 4)
    lines = read(world.folder)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert found(world).parts["lost work"] == 1.5 * (3 + 1)
    assert found(world).parts["training"] == 1.5 * 3
    assert found(world).parts["recovery"] == 8.0
    assert found(world).wall == world.seconds - 64.0
    assert found(world).lives == 1


def test_accounts_come_with_the_step_after_a_pause_and_disturb_no_reader(world):
    with world.begins(0, init=1.0) as run:
        world.steps(run, 1, 2, 3)
        world.pauses(run, "checkpoint", 1.0)
        world.steps(run, 4, 5)
    lines = read(world.folder)
    told = [(line["kind"], line["step"]) for line in lines]
    train = [("train", step) for step in range(1, 6)]
    goodput = [("goodput", step) for step in (1, 4, 5)]
    assert told == [train[0], goodput[0], *train[1:4], goodput[1], train[4], goodput[2]]
    kinds = {"step": int, "time": float, "kind": str}  # what every line has
    assert all(isinstance(line[field], kind) for line in lines for field, kind in kinds.items())
    assert "seconds_per_step" not in lines[1]


def test_a_run_that_failed_leaves_an_account_and_says_nothing(world, capsys):
    with pytest.raises(OSError), world.begins(0, init=1.0) as run:
        world.steps(run, 1)
        raise OSError
    assert found(world).parts["starting"] == 1.0
    assert "goodput" not in capsys.readouterr().out
    with world.begins(1, init=1.0) as run:
        world.steps(run, 2)
    assert "goodput 0.0 %" in capsys.readouterr().out


def test_a_run_without_accounts_has_no_goodput_and_keeps_its_lines():
    lines = [{"step": step, "time": 1.0, "kind": "train", "loss": 1.0} for step in range(1, 5)]
    assert Goodput.of(lines) is None
    assert gone_back(lines, 2) == lines[:2]
    odd = {"step": 1, "time": 1.0, "kind": "goodput", "note": "of another program"}
    assert Goodput.of([odd]) is None


def test_a_process_knows_when_it_was_started():
    program = (
        "import time; time.sleep(0.5)\n"
        "from gemma_train.metrics.goodput import process_start\n"
        "print(time.perf_counter() - process_start())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    age = float(done.stdout)
    assert (0.4 if sys.platform == "linux" else 0.0) < age < 60
