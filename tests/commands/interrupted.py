"""A run that something happens to in a phase of its choosing: python -m ... PHASE HAPPENING WORDS.

The phase is one of PHASES; what happens is a signal's name, which the process sends itself there,
once. WORDS are a command line. Of two processes, only number 1 is hit.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PHASES = ("compile", "step", "evaluation", "save", "hashing")
SLOW = 15.0  # seconds of the phase "slow disk", which is none of these: its happening comes first
STEP = 8  # in which "step" and "save" happen: past the checkpoint of step 3, ahead of that of 9


def main(phase: str, happening: str, words: list[str]) -> None:
    from gemma_train.checkpoints import seal
    from gemma_train.commands import command_line
    from gemma_train.evaluation import held_out
    from gemma_train.training import checkpoint, loop

    left = [1 if os.environ.get("JAX_PROCESS_ID", "1") == "1" else 0]

    def happen(*_: Any) -> None:
        if left[0]:
            left[0] = 0
            print("happens", flush=True)
            os.kill(os.getpid(), getattr(signal, happening))

    def ahead_of(place: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        """Let it happen ahead of a call, if the arguments are such."""
        real = getattr(place, name)

        def patched(*given: Any, **named: Any) -> Any:
            if when(*given):
                happen()
            return real(*given, **named)

        setattr(place, name, patched)

    match phase:
        case "compile":
            ahead_of(loop, "make_step")
        case "step":
            ahead_of(loop.Loop, "_take_step", lambda run, *_: run.number + 1 == STEP)
        case "evaluation":
            ahead_of(held_out, "place")
        case "save":  # while orbax writes
            ahead_of(checkpoint.Checkpoints, "_end", lambda it, step, begun: step > 3)
        case "hashing":  # committed, not sealed
            ahead_of(checkpoint, "seal", lambda place, *_: place.name != "3")
        case "slow disk":  # committed, and sealed a while later
            sealed = checkpoint.seal

            def slow(place: Any, *given: Any) -> None:
                if place.name != "3":
                    happen()
                    print("sleeps", flush=True)
                    time.sleep(SLOW)
                sealed(place, *given)

            checkpoint.seal = slow
        case _:
            raise ValueError(phase)
    assert seal and held_out
    sys.argv[1:] = words
    command_line.main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
