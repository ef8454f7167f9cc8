"""A run that something happens to in a phase of its choosing: python -m ... PHASE HAPPENING WORDS.

The phase is one of PHASES, or of a start from a checkpoint. What happens is a signal by name, or
several, which the process sends itself there, once, or an error, which it raises. WORDS are a
command line. Of two processes, the one with the number HIT, or 1, is hit.
"""

import builtins
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PHASES = ("compile", "step", "evaluation", "save", "hashing")
SLOW = 15.0  # seconds of the phase "slow disk", which is none of these: its happening comes first
STEP = 8  # in which "step" and "save" happen: past the checkpoint of step 3, ahead of that of 9


def main(phase: str, happening: str, words: list[str]) -> int:
    from gemma_train import errors
    from gemma_train.checkpoints import folder, seal
    from gemma_train.commands import command_line
    from gemma_train.evaluation import held_out
    from gemma_train.training import checkpoint, loop

    hit = os.environ.get("HIT", "1")
    left = [int(os.environ.get("JAX_PROCESS_ID", hit) == hit)]

    def happen(*_: Any) -> None:
        if left[0]:
            left[0] = 0
            print("happens", flush=True)
            if not happening.startswith("SIG"):
                raise getattr(errors, happening, getattr(builtins, happening, None))("is raised")
            for name in happening.split():
                os.kill(os.getpid(), getattr(signal, name))

    def ahead_of(place: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        """Let it happen ahead of a call, if the arguments are such."""
        real = getattr(place, name)

        def patched(*given: Any, **named: Any) -> Any:
            if when(*given):
                happen()
            return real(*given, **named)

        setattr(place, name, patched)

    def saved(run: Any) -> bool:
        """After checkpoint 6 is sealed by all."""
        while run.checkpoints._folder.unfinished:
            time.sleep(0.01)
        return True

    match phase:
        case "compile":
            ahead_of(loop, "make_step")
        case "step":
            ahead_of(loop.Loop, "_take_step", lambda run, *_: run.number + 1 == STEP and saved(run))
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
        case "clearing":  # of what a kill has left, by the leader
            ahead_of(folder.CheckpointFolder, "clear_unfinished")
        case "verifying":  # this one's share of the files
            ahead_of(folder, "damage")
        case "restoring":
            ahead_of(checkpoint.orbax_arrays, "metadata")
        case _:
            raise ValueError(phase)
    assert seal and held_out
    return command_line.run_to_its_end(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
