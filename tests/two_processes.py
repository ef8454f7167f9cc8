"""One of the two processes of test_placement: started with an address and its number.

They check their own rows of a batch, and that what one finds is told to both, also an error.
"""

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gemma_train.data.example import Batch, Layout


def numbered(rows: int, layout: Layout) -> Batch:
    """A batch in which every number is of one place in one array only, as far as bfloat16 goes."""
    arrays, count = {}, 0
    for name, (shape, dtype) in layout.arrays(rows).items():
        size = math.prod(shape)
        arrays[name] = np.arange(count, count + size).reshape(shape).astype(dtype)
        count += size
    return Batch(**arrays)


def check_leader(number: int) -> None:
    """What the leader finds is found by all, and so is its refusal; nobody else looks."""
    from gemma_train.agreement import of_all, of_leader
    from gemma_train.errors import Unrecoverable

    looked = []

    def find() -> str:
        looked.append(number)
        if len(looked) == 2:
            raise Unrecoverable(f"refused by {number}")
        return f"ä of {number}"

    assert of_leader(find) == "ä of 0"
    long = " ".join(map(str, range(10_000)))
    assert of_leader(lambda: long) == long
    assert of_all(long if number else "") == ["", long]
    assert raised(lambda: of_leader(find)) == (3, "refused by 0")
    assert looked == ([0, 0] if number == 0 else [])


def check_errors(number: int) -> None:
    """An error of any is raised on all, of the same code."""
    from gemma_train.agreement import by_all, of_leader

    def fail(error: Exception) -> None:
        raise error

    assert by_all(lambda: number) == number
    slow = TimeoutError(110, "no answer", f"file of {number}")
    for who, fails in ((0, of_leader), (1, by_all)):
        own = partial(fail, slow) if number == who else lambda: None
        told = (110, str(slow)) if number == who else (5, f"file of {who}: no answer")
        assert raised(lambda own=own, fails=fails: fails(own)) == told
    own = partial(fail, KeyError("x")) if number == 1 else lambda: None
    told = (None, "'x'") if number == 1 else (1, "process 1 failed: KeyError('x')")
    assert raised(lambda: by_all(own)) == told


def raised(function: Callable[[], Any]) -> tuple[int | None, str]:
    """(exit code or number, message) of the error that it raises."""
    try:
        function()
    except Exception as error:
        return getattr(error, "exit_code", getattr(error, "errno", None)), str(error)
    raise AssertionError("nothing was raised")


def main(address: str, number: int) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    from gemma_train.mesh import MeshConfig, make_mesh, start_runtime
    from gemma_train.placement import needed_rows, place

    jax.distributed.initialize(address, num_processes=2, process_id=number)
    check_leader(number)
    check_errors(number)
    start_runtime(MeshConfig(runtime="many_processes"))  # finds the runtime started already
    rows, length = 16, 8
    batch = numbered(rows, Layout(length=length, candidates=3, images=(1, 2, 3)))
    for replica, data, seq, share in ((1, 8, 1, 8), (2, 2, 2, 8), (1, 4, 2, 8), (1, 1, 8, 16)):
        mesh = make_mesh(MeshConfig(replica=replica, data=data, seq=seq))
        needed = needed_rows(mesh, rows)
        assert len(needed) == share, (needed, share)
        own = jax.tree.map(lambda x, needed=needed: x[needed], batch)
        placed = place(own, mesh, rows)
        for name, array in vars(batch).items():
            found = getattr(placed, name)
            assert found.shape == array.shape
            assert len(found.addressable_shards) == 4
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(shard.data, array[shard.index])
    print("placed", needed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
