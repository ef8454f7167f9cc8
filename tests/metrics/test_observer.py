from gemma_train.metrics.observer import Observer
from gemma_train.metrics.recorder import read


class Arriving:
    """A scalar that the device finishes at a time of its own; reading it moves the clock there."""

    def __init__(self, clock, at: float):
        self.clock, self.at = clock, at

    def __float__(self) -> float:
        self.clock.time = max(self.clock.time, self.at)
        return self.at


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_step_takes_from_arrival_to_arrival_also_around_an_evaluation(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("gemma_train.metrics.clock.time.perf_counter", clock)
    from gemma_train.metrics import observer as module

    real = module.StepClock
    monkeypatch.setattr(module, "StepClock", lambda tokens, **how: real(tokens, now=clock, **how))
    watched = Observer(
        str(tmp_path),
        start_step=0,
        total_steps=5,
        tokens_per_step=100,
        flops_per_token=2.0,
        devices=1,
        device_peak=1000.0,
        tensorboard=False,
        active=True,
    )
    with watched:
        for step in (1, 2, 3):
            watched.step(step, {"loss": Arriving(clock, 10.0 * step)})
        watched.flush()
        with watched.clock.paused():
            clock.time += 500.0
            watched.evaluation(3, {"loss": 1.0})
        for step in (4, 5):
            watched.step(step, {"loss": Arriving(clock, 500.0 + 10.0 * step)})
        watched.flush()
    lines = [line for line in read(str(tmp_path)) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["first_step_seconds"] == 10.0
    assert [line["seconds_per_step"] for line in lines[1:]] == [10.0] * 4
    assert lines[4]["model_flops_utilization"] == 100 / 10 * 2 / 1000
