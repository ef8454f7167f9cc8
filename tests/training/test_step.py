"""The step on meshes of eight devices against one device; shardings, memory and compilations."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from gemma_train.leaves import by_path, from_paths
from gemma_train.losses.next_token import next_token_loss
from gemma_train.optimizer import learning_rate
from gemma_train.placement import place
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step
from gemma_train.zero3 import split
from tests.tolerances import assert_close, assert_close_leaves

ONE = (1, 1, 1)
MESHES = [(2, 2, 2), (1, 4, 2), (1, 2, 4), (1, 8, 1)]
STEPS, REPEATED = 5, 15

compilations: list[float] = []


@monitoring.register_event_duration_secs_listener
def _count(event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(seconds)


@dataclass(frozen=True)
class Trained:
    """What is kept of a run of STEPS steps on as many batches, then REPEATED on the last."""

    config: Any
    initial: dict  # leaves on the host
    scalars: list[dict]
    after: dict  # leaves on the host after STEPS steps
    state: Any  # on the mesh, after the last step
    step: Callable
    first_compilations: int
    later_compilations: int
    cached_programs: int

    @property
    def placed(self) -> dict:
        """The state's leaves on the mesh."""
        return by_path(self.state)

    def state_again(self) -> Any:
        """The state before the first step; steps give theirs away."""
        leaves = {n: jax.device_put(x, self.placed[n].sharding) for n, x in self.initial.items()}
        return from_paths(leaves, self.state)


@pytest.fixture(scope="module")
def trained(run_on, batch_of, mesh_of):
    """Runs a mesh's config once: `trained((replica, data, seq))`."""

    def host(state) -> dict:
        return {path: np.asarray(leaf) for path, leaf in by_path(state).items()}

    @functools.cache
    def run(mesh: tuple[int, int, int], accumulation: int = 1, shallow: bool = False) -> Trained:
        config = run_on(*mesh, accumulation=accumulation, shallow=shallow)
        with mesh_of(*mesh):
            on_mesh = jax.sharding.get_mesh()
            state, step, scalars = initial_state(config), make_step(config), []
            initial, counts = host(state), [len(compilations)]
            for number in range(STEPS + REPEATED):
                batch = place(batch_of(min(number, STEPS - 1)), on_mesh, config.data.batch_rows)
                state, now = step(state, batch)
                scalars.append({name: float(value) for name, value in now.items()})
                if number == 0:
                    counts.append(len(compilations))
                if number == STEPS - 1:
                    after = host(state)
        counts.append(len(compilations))
        return Trained(
            config=config,
            initial=initial,
            scalars=scalars,
            after=after,
            state=state,
            step=step,
            first_compilations=counts[1] - counts[0],
            later_compilations=counts[2] - counts[1],
            cached_programs=step._cache_size(),
        )

    return run


@pytest.mark.parametrize("mesh", MESHES)
def test_on_any_mesh_a_run_is_that_of_one_device(trained, mesh):
    one, many = trained(ONE), trained(mesh)
    assert_close_leaves(many.initial, one.initial, "fp32")
    for name in ("loss", "cross_entropy", "gradient_norm", "tokens", "learning_rate"):
        found, expected = ([now[name] for now in run.scalars[:STEPS]] for run in (many, one))
        assert_close(found, expected, "deep fp32", name)
    losses = [now["loss"] for now in one.scalars[:STEPS]]
    assert max(losses) - min(losses) > 0.01, "five steps that change nothing show nothing"


@pytest.mark.parametrize("accumulation", [2, 4])
def test_microbatches_change_nothing(trained, accumulation):
    mesh = (1, 2, 2)
    whole = trained(mesh, shallow=True)
    parts = trained(mesh, accumulation=accumulation, shallow=True)
    for name in ("loss", "cross_entropy", "gradient_norm", "tokens"):
        found, expected = ([now[name] for now in run.scalars[:STEPS]] for run in (parts, whole))
        assert_close(found, expected, "deep fp32", name)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_leaf_lives_where_it_is_ruled_after_a_step(trained, letters_of, mesh):
    run = trained(mesh)
    sizes = run.config.mesh.axis_sizes
    parameters = [path for path in run.placed if path.startswith("model/")]
    assert len(run.placed) == 3 * len(parameters) + 10, "parameters, moments, counters, guard"
    for path, leaf in run.placed.items():
        letters = letters_of(path)
        if letters:
            assert leaf.sharding.spec == split(letters, leaf.shape, sizes), path
            assert leaf.dtype == jnp.float32
        else:
            assert leaf.shape == (), path
            assert leaf.sharding.is_fully_replicated, path


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_are_split_as_their_parameters(run_on, batch_of, mesh_of, letters_of, mesh):
    config = run_on(*mesh)
    with mesh_of(*mesh):
        batch = place(batch_of(0), jax.sharding.get_mesh(), config.data.batch_rows)
        model = jax.eval_shape(lambda: initial_state(config)).model
        gradient = jax.grad(lambda *a: next_token_loss(*a, config.loss)[0])
        found = by_path(jax.eval_shape(gradient, model, batch, jnp.float32(1)))
    assert found.keys() == by_path(model).keys()
    for path, leaf in found.items():
        expected = split(letters_of(path), leaf.shape, config.mesh.axis_sizes)
        assert leaf.sharding.spec == expected, path
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_holds_its_share_of_the_state_and_no_more(trained, mesh):
    run = trained(mesh)
    parts = run.config.mesh.data * run.config.mesh.seq
    total = sum(leaf.nbytes for leaf in run.placed.values())
    for device in range(8):
        held = sum(leaf.addressable_shards[device].data.nbytes for leaf in run.placed.values())
        assert held == pytest.approx(total / parts, rel=0.01)


@pytest.mark.parametrize("mesh", [ONE, *MESHES])
def test_twenty_steps_compile_one_program(trained, mesh):
    run = trained(mesh)
    assert len(run.scalars) == 20
    assert run.cached_programs == 1
    assert run.first_compilations >= 1, "the counter counts"
    assert run.later_compilations == 0


@pytest.mark.parametrize("mesh", [ONE, *MESHES])
def test_a_batch_seen_again_and_again_is_learned(trained, mesh):
    losses = [now["cross_entropy"] for now in trained(mesh).scalars[STEPS:]]
    assert losses[-1] < losses[0] - 0.5
    assert sum(b < a for a, b in itertools.pairwise(losses)) >= len(losses) - 3


def test_scalars_say_what_happened(trained, batch_of):
    run = trained(ONE)
    rate = learning_rate(run.config.optimizer, run.config.steps)
    for number, now in enumerate(run.scalars[:STEPS]):
        assert now["tokens"] == batch_of(number).weights_bt.sum()
        assert now["learning_rate"] == pytest.approx(float(rate(number)))
        # The z-loss is in one of the two and not in the other.
        z_loss = now["loss"] - now["cross_entropy"]
        assert 0 < z_loss < 0.5
    assert run.after["step"] == STEPS


def test_the_reported_norm_is_that_of_the_gradient_before_clipping(
    trained, run_on, batch_of, mesh_of
):
    config, run = run_on(shallow=True), trained(ONE, shallow=True)
    now = run.scalars[0]
    with mesh_of():
        batch = place(batch_of(0), jax.sharding.get_mesh(), config.data.batch_rows)
        loss = functools.partial(next_token_loss, config=config.loss)
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        weight = jnp.float32(1 / batch_of(0).weights_bt.sum())
        values, tree = gradient(run.state_again().model, batch, weight)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in by_path(tree).values()))
    assert norm > config.optimizer.clip_norm, "a norm that clipping would have changed"
    assert_close(now["gradient_norm"], norm, "deep fp32")
    assert_close([now["loss"], now["cross_entropy"]], values, "deep fp32")


def test_a_batch_without_loss_moves_no_matrix_but_by_decay(trained, batch_of, mesh_of):
    run, batch = trained(ONE, shallow=True), batch_of(0)
    empty = replace(batch, weights_bt=np.zeros_like(batch.weights_bt))
    with mesh_of():
        empty = place(empty, jax.sharding.get_mesh(), run.config.data.batch_rows)
        state, scalars = run.step(run.state_again(), empty)
    assert scalars["loss"] == scalars["gradient_norm"] == scalars["tokens"] == 0
    kept = 1 - float(scalars["learning_rate"]) * run.config.optimizer.weight_decay
    for path, leaf in by_path(state.model).items():
        assert_close(leaf, run.initial[f"model/{path}"] * kept, "fp32", path)
