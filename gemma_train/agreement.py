"""What the processes of a run tell each other: findings, and errors, which then end all alike."""

from collections.abc import Callable
from typing import Any

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
    words, trouble = "", None
    if is_leader():
        try:
            words = "+" + (find() or "")
        except Exception as error:
            words, trouble = _packed(error), error
    length = multihost_utils.broadcast_one_to_all(np.int32(len(words.encode())))
    found = _received(multihost_utils.broadcast_one_to_all(_sent(words, int(length))))
    if trouble is not None:
        raise trouble
    if found[:1] != "+":
        raise _unpacked(found)
    return found[1:]


def of_all(words: str) -> list[str]:
    """What every process says, in their order, on each of them; all of them wait."""
    if jax.process_count() == 1:
        return [words]
    lengths = multihost_utils.process_allgather(np.int32(len(words.encode())))
    found = multihost_utils.process_allgather(_sent(words, int(np.max(lengths))))
    return [*map(_received, np.asarray(found))]


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


def _sent(words: str, length: int) -> np.ndarray:
    """uint8 [length + 1]: of one size on all processes, whatever each has to say."""
    return np.frombuffer(words.encode().ljust(length + 1, b"\0"), np.uint8)


def _received(sent: Any) -> str:
    return bytes(np.asarray(sent)).rstrip(b"\0").decode(errors="replace")
