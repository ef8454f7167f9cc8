"""Silent corruption, looked for: a step computed twice, and replicas compared.

The same program on the same numbers gives the same bits, and what stands along `replica` holds
equal copies: where that fails, hardware is at fault. Memory for a second state is needed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gemma_train.errors import FaultyHardware
from gemma_train.training.digest import by_replica
from gemma_train.training.state import TrainState


def replayed(step: Callable[..., tuple[TrainState, Any]], state: TrainState, *given: Any) -> Any:
    """What `step(state, *given)` gives. Raises `FaultyHardware` where a second time gives other."""
    number = int(state.step) + 1
    check_replicas(state, number - 1)
    copy = jax.tree.map(jnp.copy, state)
    once = by_replica(step(copy, *given)[0])
    found = step(state, *given)
    again = by_replica(found[0])
    if once != again:
        raise FaultyHardware(
            f"step {number:,}, computed twice, gave two states ({once} and {again}): replace the "
            "machines; the run goes on from its newest checkpoint"
        )
    return found


def check_replicas(state: TrainState, number: int) -> None:
    """Raise `FaultyHardware`, naming a replica, where not all of them hold the same state."""
    found = by_replica(state)
    common = max(found, key=found.count)
    others = [replica for replica, one in enumerate(found) if one != common]
    if not others:
        return
    told = f"replica {others[0]} of {len(found)} holds {found[others[0]]}, the others {common}"
    if len(found) == 2:
        told = f"one of two replicas is wrong, which hold {found[0]} and {found[1]}"
    raise FaultyHardware(
        f"after step {number:,} {told}: replace the machines; the run goes on from its newest "
        "checkpoint"
    )
