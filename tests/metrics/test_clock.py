"""The step clock, on a time source that the test winds by hand."""

import pytest

from gemma_train.metrics.clock import StepClock


class Watch:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def watch():
    return Watch()


def test_the_first_step_is_reported_apart(watch):
    clock = StepClock(1000, now=watch)
    watch.seconds += 30
    assert clock.tick() == {"first_step_seconds": 30, "data_wait_seconds": 0}
    watch.seconds += 2
    assert clock.tick() == {
        "seconds_per_step": 2,
        "tokens_per_second": 500,
        "data_wait_seconds": 0,
    }


def test_waiting_for_data_is_counted_within_its_step(watch):
    clock = StepClock(1000, now=watch)
    clock.tick()
    for _ in range(2):
        with clock.waiting_for_data():
            watch.seconds += 0.5
    watch.seconds += 3
    assert clock.tick() == {
        "seconds_per_step": 4,
        "tokens_per_second": 250,
        "data_wait_seconds": 1,
    }
    watch.seconds += 1
    assert clock.tick()["data_wait_seconds"] == 0


def test_a_pause_is_left_out_even_when_it_raises(watch):
    clock = StepClock(1000, now=watch)
    clock.tick()
    watch.seconds += 1
    with pytest.raises(OSError), clock.paused():
        watch.seconds += 50
        raise OSError
    watch.seconds += 1
    assert clock.tick()["seconds_per_step"] == 2
