"""One of the two processes of test_placement: started with an address and its number.

They check their own rows of a batch, and that what one finds is told to both.
"""

import math
import os
import sys

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
    from gemma_train.errors import UserError
    from gemma_train.mesh import of_leader

    looked = []

    def find() -> str:
        looked.append(number)
        if len(looked) == 2:
            raise UserError(f"refused by {number}")
        return f"ä of {number}"

    assert of_leader(find) == "ä of 0"
    try:
        of_leader(find)
    except UserError as error:
        assert str(error) == "refused by 0"
    else:
        raise AssertionError("the leader refused")
    assert looked == ([0, 0] if number == 0 else [])


def main(address: str, number: int) -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    from gemma_train.mesh import MeshConfig, make_mesh, start_runtime
    from gemma_train.placement import needed_rows, place

    jax.distributed.initialize(address, num_processes=2, process_id=number)
    check_leader(number)
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
