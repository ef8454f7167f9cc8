"""The state's leaves by name, and its shapes and places before anything is allocated."""

import jax
import numpy as np
import pytest

from gemma_train.leaves import by_path, from_paths
from gemma_train.training.state import abstract_state, initial_state
from gemma_train.zero3 import split

MESHES = [(1, 1, 1), (2, 2, 2), (1, 8, 1)]


@pytest.fixture(scope="module", params=MESHES, ids=str)
def states(request, run_on, mesh_of):
    """(the real state, the abstract one, of as many devices' mesh)."""
    config = run_on(*request.param)
    with mesh_of(*request.param):
        return initial_state(config), abstract_state(config)


def test_the_abstract_state_is_the_real_one_without_its_numbers(states):
    real, abstract = map(by_path, states)
    assert list(real) == list(abstract)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for path, leaf in real.items():
        like = abstract[path]
        assert isinstance(like, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype), path
        assert leaf.sharding == like.sharding, path


def test_every_leaf_is_made_where_it_is_ruled(states, letters_of):
    for path, leaf in by_path(states[0]).items():
        if letters := letters_of(path):
            sizes = leaf.sharding.mesh.shape
            assert leaf.sharding.spec == split(letters, leaf.shape, sizes), path
        else:
            assert leaf.shape == (), path


def test_every_leaf_has_a_name_of_its_own_that_reads_as_a_path(states):
    state = states[0]
    leaves = by_path(state)
    assert len(leaves) == len(jax.tree.leaves(state))
    assert "step" in leaves
    for name in (
        "model/embedding/table",
        "model/pattern/1/attention/query",
        "model/remainder/0/feed_forward/down",
        "model/final_norm",
    ):
        assert name in leaves
        moments = [path for path in leaves if path.endswith(name.removeprefix("model"))]
        assert len(moments) == 3, "a parameter and its two moments"
    assert not [path for path in leaves if set(path) & set("[]'. ")]


def test_leaves_by_path_make_the_state_again(states):
    state, abstract = states
    leaves = by_path(state)
    shuffled = {path: leaves[path] for path in sorted(leaves, reverse=True)}
    again = from_paths(shuffled, abstract)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True))


def test_a_leaf_that_is_missing_is_an_error(states):
    leaves = by_path(states[0])
    del leaves["model/final_norm"]
    with pytest.raises(KeyError, match="model/final_norm"):
        from_paths(leaves, states[1])


def test_the_state_before_the_first_step(states):
    for path, leaf in by_path(states[0]).items():
        if not path.startswith("model/"):
            assert not np.asarray(leaf).any(), path


def test_the_seed_decides_the_parameters(run_on, mesh_of):
    with mesh_of():
        one, same, other = (
            by_path(initial_state(run_on(shallow=True, seed=s)).model) for s in (1, 1, 2)
        )
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, same[path])
        assert path.endswith("norm") or not np.array_equal(leaf, other[path])
