"""The progress line, on a terminal and off."""

import io

from rich.console import Console

from gemma_train.metrics.progress import Progress

SCALARS = {
    "loss": 3.25,
    "learning_rate": 6e-4,
    "tokens_per_second": 12_345.0,
    "seconds_per_step": 2.0,
    "data_wait_seconds": 0.1,
    "model_flops_utilization": 0.412,
}


class Watch:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def plain():
    return Console(file=io.StringIO(), width=200)


def lines(console):
    return console.file.getvalue().splitlines()


def test_off_a_terminal_a_line_is_whole_and_plain():
    console, watch = plain(), Watch()
    with Progress(1000, 0, every_steps=1, console=console, now=watch) as progress:
        progress.update(499, SCALARS)
        watch.seconds = 2
        progress.update(500, SCALARS)
    assert lines(console)[1] == (
        "step 500/1,000 · loss 3.2500 · lr 6.0e-04 · 12.3k tokens/s · data wait 5% · MFU 41.2%"
        " · 16 min 40 s left"
    )


def test_lines_come_every_so_many_seconds_and_at_the_last_step():
    console, watch = plain(), Watch()
    with Progress(30, 0, every_seconds=10, console=console, now=watch) as progress:
        for step in range(1, 31):
            progress.update(step, {})
            watch.seconds += 1
    assert [line.split()[1] for line in lines(console)] == ["1/30", "11/30", "21/30", "30/30"]


def test_lines_come_every_so_many_steps_of_a_resumed_run():
    console = plain()
    with Progress(30, 20, every_steps=4, console=console) as progress:
        for step in range(21, 31):
            progress.update(step, {})
    assert [line.split()[1] for line in lines(console)] == ["24/30", "28/30", "30/30"]


def test_a_terminal_shows_a_bar_that_is_redrawn_a_few_times_a_second():
    console, watch = Console(file=io.StringIO(), width=160, force_terminal=True), Watch()
    with Progress(1000, 0, console=console, now=watch) as progress:
        progress.update(1, SCALARS)
        once = len(console.file.getvalue())
        progress.update(2, SCALARS)
        assert len(console.file.getvalue()) == once
        progress.say("a [checkpoint] of step 2")
        watch.seconds = 1
        progress.update(3, SCALARS)
    text = console.file.getvalue()
    assert "a [checkpoint] of step 2" in text and "loss 3.2500" in text and "━" in text
