"""What the processes of a run tell each other: findings, and errors, which then end all alike."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemma_train.errors import (
    Damaged,
    Elsewhere,
    FaultyHardware,
    Stalled,
    Unrecoverable,
    UserError,
)
from gemma_train.mesh import is_leader
from gemma_train.storage import refusal

_LONGEST = 4096  # bytes that a process tells at one time
_KINDS = {
    kind.__name__: kind
    for kind in (UserError, Damaged, Unrecoverable, FaultyHardware, Stalled, Elsewhere)
}


def of_leader(find: Callable[[], str | None]) -> str:
    """What the leader finds, on every process: the others look for nothing, and wait.

    An error of the leader's is raised on all, as `by_all` has it.
    """
    if jax.process_count() == 1:
        return find() or ""
    sent, trouble = _sent(""), None
    if is_leader():
        try:
            sent = _sent("+" + (find() or ""))
        except Exception as error:
            sent, trouble = _sent(_packed(error)), error
    found = _received(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
    if trouble is not None:
        raise trouble
    if found[:1] != "+":
        raise _unpacked(found)
    return found[1:]


def of_all(words: str) -> list[str]:
    """What every process says, in their order, on each of them; all of them wait."""
    if jax.process_count() == 1:
        return [words]
    return [*map(_received, np.asarray(multihost_utils.process_allgather(_sent(words))))]


def by_all[Result](work: Callable[[], Result]) -> Result:
    """What this process's own work gives it, when that of all is done.

    An error of any is raised on all, of the same kind and with the same exit code.
    """
    if jax.process_count() == 1:
        return work()
    try:
        result = work()
    except Exception as error:
        of_all(_packed(error))
        raise
    told = of_all("")
    if trouble := next(filter(None, told), ""):
        raise _unpacked(trouble)
    return result


def _packed(error: Exception) -> str:
    told = error if isinstance(error, UserError) else refusal(error)
    told = told or Elsewhere(f"process {jax.process_index()} failed: {error!r}")
    kind = next(one.__name__ for one in type(told).__mro__ if one.__name__ in _KINDS)
    return f"{kind} {told}"


def _unpacked(words: str) -> UserError:
    kind, _, message = words.partition(" ")
    return _KINDS[kind](message)


def _sent(words: str) -> np.ndarray:
    sent, content = np.zeros(_LONGEST, np.uint8), words.encode()[:_LONGEST]
    sent[: len(content)] = np.frombuffer(content, np.uint8)
    return sent


def _received(sent: np.ndarray) -> str:
    return bytes(sent).rstrip(b"\0").decode(errors="replace")
