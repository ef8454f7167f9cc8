"""What a run begins from: moments kept or fresh; weights of a shorter context, or refused."""

import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import open_beginning, open_weights
from gemma_train.errors import UserError
from gemma_train.leaves import by_path, from_paths
from gemma_train.placement import place
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.claim import claim
from gemma_train.training.position import Position
from gemma_train.training.state import (
    abstract_state,
    check_moments,
    imported_state,
    initial_state,
)
from gemma_train.training.step import make_step

ROWS, STEPS_TAKEN = 8, 3
ADAM_COUNT, SCHEDULE_COUNT = "moments/1/0/count", "moments/1/2/count"
ANEW = ("step", SCHEDULE_COUNT, "guard/")
MESHES = [(1, 1, 1), (1, 4, 2)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_on, mesh_of):
    """(a run that is saved as if after 3 steps, its state on the host): one layer, a global one."""
    model = replace(run_on(shallow=True).model, pattern=("global",))
    config = run_on(2, 2, 1, folder=str(tmp_path_factory.mktemp("run") / "base"), model=model)
    random = np.random.default_rng(0)

    def value(path: str, leaf: jax.Array) -> np.ndarray:
        if leaf.ndim == 0:
            return np.full((), STEPS_TAKEN, leaf.dtype)
        if path.startswith("model/"):
            return np.asarray(leaf)
        return random.random(leaf.shape, np.float32) * 1e-3

    claim(config, begun=False)
    with mesh_of(2, 2, 1), Checkpoints(config) as checkpoints:
        state = initial_state(config)
        leaves = {path: value(path, leaf) for path, leaf in by_path(state).items()}
        places = {path: leaf.sharding for path, leaf in by_path(state).items()}
        placed = {path: jax.device_put(leaf, places[path]) for path, leaf in leaves.items()}
        checkpoints.save(STEPS_TAKEN, from_paths(placed, state), Position())
    return config, leaves


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory) -> dict[str, str]:
    """The run, and its weights in other folders, none of which has moments."""
    made, target = {"run": run[0].folder}, tmp_path_factory.mktemp("converted")
    for format in ("hf", "gemma", "run"):
        made[f"as {format}"] = str(target / format)
        convert_weights(open_weights(run[0].folder), made[f"as {format}"], format)
    return made


@pytest.fixture
def next_run(run, run_on):
    """Makes the config of a run that begins from it on another mesh."""

    def make(*mesh: int, **changes):
        given = {"initial_weights": run[0].folder, "folder": "next", "model": run[0].model}
        return run_on(*mesh, **given | changes)

    return make


def begun(config):
    weights = open_beginning(config.initial_weights, config.model)
    check_moments(config, weights)
    return imported_state(config, weights)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_kept_moments_are_the_checkpoints_on_any_mesh_and_the_schedule_begins_anew(
    run, next_run, mesh_of, mesh
):
    config = next_run(*mesh, initial_moments="kept")
    with mesh_of(*mesh):
        state, abstract = begun(config), by_path(abstract_state(config))
    for path, leaf in by_path(state).items():
        wanted = 0 if path.startswith(ANEW) else run[1][path]
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)
        assert leaf.sharding == abstract[path].sharding, path
        assert leaf.dtype == abstract[path].dtype, path
    assert run[1][ADAM_COUNT] == run[1][SCHEDULE_COUNT] == STEPS_TAKEN
    moments = [path for path in run[1] if re.match(r"moments/1/0/[mn]u/", path)]
    assert len(moments) == 2 * len([path for path in run[1] if path.startswith("model/")])
    assert all(run[1][path].any() for path in moments), "zeros would prove nothing"


def test_fresh_moments_are_zeros(run, next_run, mesh_of):
    with mesh_of():
        leaves = by_path(begun(next_run()))
    for path, leaf in leaves.items():
        wanted = run[1][path] if path.startswith("model/") else 0
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)


def test_the_first_step_differs_and_kept_moments_make_it_the_checkpoints_next(
    run, next_run, mesh_of, batch_of
):
    """At one learning rate: the run's own next step, but for what the schedule says."""
    constant = replace(run[0].optimizer, schedule="constant", warmup_steps=0)
    resumed = replace(run[0], optimizer=constant, mesh=next_run().mesh)
    after = {}
    with mesh_of():
        batch, step = place(batch_of(99), jax.sharding.get_mesh(), ROWS), make_step(resumed)
        with Checkpoints(resumed) as checkpoints:
            wanted, _ = step(checkpoints.restore(STEPS_TAKEN).state, batch, None)
        for moments in ("fresh", "kept"):
            config = next_run(initial_moments=moments, optimizer=constant)
            state, _ = step(begun(config), batch, None)
            after[moments] = by_path(jax.tree.map(np.asarray, state))
        wanted = by_path(jax.tree.map(np.asarray, wanted))
    for path, leaf in after["kept"].items():
        if path in ("step", SCHEDULE_COUNT):
            assert (leaf, wanted[path]) == (1, STEPS_TAKEN + 1)
        if path.startswith(ANEW):
            continue
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
        assert not np.array_equal(leaf, after["fresh"][path]), path


NO_RUN = "is no run, and only a run's checkpoint has moments: begin with fresh ones"
NO_MOMENTS = r"does not hold this optimizer's moments \(\d+ of \d+ are missing or of another shape"


@pytest.mark.parametrize(
    ("source", "told"), [("as hf", NO_RUN), ("as gemma", NO_RUN), ("as run", NO_MOMENTS)]
)
def test_moments_that_the_weights_do_not_have_are_refused(folders, next_run, mesh_of, source, told):
    config = next_run(initial_moments="kept", initial_weights=folders[source])
    with mesh_of(), pytest.raises(UserError, match=f"^initial_weights: .*{told}"):
        begun(config)
    with mesh_of():
        begun(replace(config, initial_moments="fresh"))


def test_moments_without_a_run_to_take_them_from_are_refused(run_on):
    with pytest.raises(UserError, match="initial_moments is 'kept', but initial_weights is None:"):
        run_on(initial_moments="kept")


LONGER = "model.context is 64, but '.*' was trained at 16 with the same model.global_rope_factor, 1"
FACTOR = "model.global_rope_factor is 8, but '.*' was trained with 1 at a model.context of 16, as"
OTHER = "holds another model than the config"


@pytest.mark.parametrize("source", ["run", "as hf", "as gemma"])
@pytest.mark.parametrize(
    ("factor", "context", "told"),
    [
        (1.0, 16, None),
        (1.0, 8, None),
        (8.0, 128, None),
        (8.0, 64, None),  # as the report does: a fourfold context by eight
        (1.0, 64, LONGER),
        (8.0, 16, FACTOR),
        (8.0, 8, FACTOR),
        (0.5, 16, OTHER),
        (0.5, 64, OTHER),
    ],
)
def test_a_longer_context_needs_a_larger_factor_and_the_stage_makes_both(
    run, folders, source, factor, context, told
):
    model = replace(run[0].model, global_rope_factor=factor, context=context)
    open_ = partial(open_beginning, folders[source], model)
    if told is None:
        assert open_().config == open_weights(folders[source]).config
        return
    with pytest.raises(UserError, match=told) as refusal:
        open_()
    assert "\n" not in str(refusal.value)
    assert told == OTHER or "stages.long_context (docs/long_context.md)" in str(refusal.value)


def test_all_else_must_agree_also_with_a_larger_factor(run):
    model = replace(run[0].model, global_rope_factor=8.0, context=128, query_scale=4.0)
    with pytest.raises(
        UserError, match=r"another model than the config \(model.query_scale was 8, is 4"
    ):
        open_beginning(run[0].folder, model)


def test_the_computed_model_has_the_factor_of_the_config(run, next_run, mesh_of):
    long = replace(run[0].model, global_rope_factor=8.0, context=128)
    with mesh_of():
        assert begun(next_run(model=long)).model.config == long
