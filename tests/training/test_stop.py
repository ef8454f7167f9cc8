"""Requests to stop: the first asks, Ctrl-C after it ends, also where something swallows it."""

import signal
from contextlib import suppress

import pytest

from gemma_train.training.stop import Stopped, StopRequest


def test_the_first_signal_asks_and_the_second_ctrl_c_ends():
    with StopRequest() as stop:
        stop.check()
        assert not stop.agreed()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed()
        with pytest.raises(Stopped):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("later", ["check", "agreed"])
def test_a_ctrl_c_that_a_callback_of_native_code_swallowed_comes_again(later):
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            getattr(stop, later)()
