"""From rows to the mesh: every device holds its rows and positions, in one process and in two."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gemma_train.data.example import Batch, Layout
from gemma_train.placement import abstract_batch, needed_rows, place
from tests.two_processes import numbered

ROOT = Path(__file__).parents[1]
MESHES = [(1, 1, 1), (2, 2, 2), (1, 4, 2), (1, 2, 4), (1, 8, 1), (8, 1, 1)]


@pytest.mark.parametrize("mesh", MESHES)
def test_one_process_needs_every_row_once(mesh, mesh_of):
    with mesh_of(*mesh):
        assert needed_rows(jax.sharding.get_mesh(), 16) == list(range(16))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_placed_batch_is_the_batch_split_by_rows_and_positions(mesh, mesh_of):
    rows, length = 16, 8
    layout = Layout(length=length, candidates=3, images=(2, 4, 6))
    batch = numbered(rows, layout)
    replica, data, seq = mesh
    with mesh_of(*mesh):
        placed = place(batch, jax.sharding.get_mesh(), rows)
    for name, array in vars(batch).items():
        found = getattr(placed, name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        for shard in found.addressable_shards:
            sizes = {"b": rows // (replica * data), "t": length // seq, "q": 3, "i": 2, "p": 4}
            part = [{**sizes, "e": 6}[letter] for letter in name.rpartition("_")[2]]
            assert list(shard.data.shape) == part
            np.testing.assert_array_equal(shard.data, array[shard.index])
    assert isinstance(placed, Batch)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("candidates", [0, 3])
@pytest.mark.parametrize("images", [None, (2, 4, 6)])
def test_an_abstract_batch_is_a_placed_one_without_its_numbers(mesh, candidates, images, mesh_of):
    layout = Layout(length=8, candidates=candidates, images=images)
    with mesh_of(*mesh):
        placed = place(numbered(16, layout), jax.sharding.get_mesh(), 16)
        abstract = abstract_batch(jax.sharding.get_mesh(), 16, layout)
    assert jax.tree.structure(placed) == jax.tree.structure(abstract)
    for name, array in vars(placed).items():
        if array is None:
            continue
        like = getattr(abstract, name)
        assert isinstance(like, jax.ShapeDtypeStruct)
        assert (like.shape, like.dtype) == (array.shape, array.dtype), name
        assert like.sharding == array.sharding, name


def test_two_processes_place_their_own_rows_and_hear_their_leader():
    """Two real processes of four devices each; see two_processes.py, which holds the checks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.two_processes", address]
    processes = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
        assert "placed" in text
