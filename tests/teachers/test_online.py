"""A teacher in the step: refused or loaded, on any mesh, and in no checkpoint."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from gemma_train.config import (
    Dense,
    Distillation,
    ImageRows,
    Online,
    Priority,
    TopK,
    VisionConfig,
)
from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import open_weights
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.losses import training_loss
from gemma_train.losses.distillation import _draws, taught
from gemma_train.model import ComputeConfig, Gemma
from gemma_train.model.gemma import shared
from gemma_train.placement import place
from gemma_train.teachers.online import abstract_teacher, load_teacher, open_teacher, told
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.claim import claim
from gemma_train.training.position import Position
from gemma_train.training.state import abstract_state, initial_state
from gemma_train.training.step import make_step
from gemma_train.zero3 import split, summed
from tests.tolerances import TOLERANCES, assert_close, assert_close_leaves

ONE = (1, 1, 1)
STEPS = 3


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory, run_on, mesh_of):
    """The config of a run whose newest checkpoint is a teacher: deeper, wider, of Gemma 2."""
    config = run_on(folder=str(tmp_path_factory.mktemp("runs") / "teacher"), seed=7)
    model = replace(
        config.model,
        width=24,
        layers=3,
        query_heads=2,
        key_value_heads=1,
        hidden=40,
        query_key_norm=False,
        attention_soft_cap=20.0,
        final_soft_cap=6.0,
        global_rope_base=10_000.0,
    )
    config = replace(config, model=model)
    with mesh_of(), Checkpoints(config) as checkpoints:
        claim(config, begun=False)
        checkpoints.save(4, initial_state(config), Position())
    return config


@pytest.fixture(scope="module")
def distilled(run_on, teacher_run):
    """Makes the config of a run on a mesh that the teacher teaches."""

    def make(*mesh: int, sampler=Priority(candidates=8), online=None, **changes):  # noqa: B008
        values = {"weights": teacher_run.folder, "dtype": "float32", **(online or {})}
        loss = Distillation(teacher=Online(**values), sampler=sampler, chunk=7)
        return run_on(*mesh, loss=loss, shallow=True, **changes)

    return make


def test_it_is_loaded_from_its_folder_in_its_dtype_and_place(
    distilled, teacher_run, mesh_of, letters_of
):
    with mesh_of():
        expected = by_path(initial_state(teacher_run).model)
    for mesh in (ONE, (2, 2, 2)):
        for sharding in ("split", "whole"):
            config = distilled(*mesh, online={"dtype": "bfloat16", "sharding": sharding})
            with mesh_of(*mesh):
                teacher, like = load_teacher(config), abstract_teacher(config)
            assert jax.tree.structure(teacher) == jax.tree.structure(like)
            likes = by_path(like)
            for path, leaf in by_path(teacher).items():
                assert (leaf.dtype, leaf.sharding) == (jnp.bfloat16, likes[path].sharding)
                spec = split(letters_of(path), leaf.shape, config.mesh.axis_sizes)
                whole = PartitionSpec(*(None,) * leaf.ndim)
                assert leaf.sharding.spec == (whole if sharding == "whole" else spec)
                np.testing.assert_array_equal(leaf, np.asarray(expected[path], jnp.bfloat16))


def test_a_config_without_one_has_none(run_on, mesh_of):
    with mesh_of():
        assert load_teacher(run_on()) is None
        assert abstract_teacher(run_on()) is None


@pytest.mark.parametrize("format", ["hf", "gemma"])
def test_a_teacher_of_another_format_is_the_same(format, tmp_path, distilled, teacher_run, mesh_of):
    folder = str(tmp_path / format)
    convert_weights(open_weights(teacher_run.folder), folder, format)
    config = distilled(online={"weights": folder, "model": teacher_run.model})
    with mesh_of():
        found, expected = load_teacher(config), load_teacher(distilled())
        assert_close_leaves(by_path(found), by_path(expected), "fp32")


def test_who_teaches_is_told(distilled, teacher_run):
    config = distilled(online={"sharding": "whole"})
    line = told(config, open_teacher(config))
    assert line.startswith("teacher: ")
    assert f"of {teacher_run.folder} after 4 steps, float32, a copy on every device" in line


def test_a_teacher_of_text_does_not_teach_of_images(distilled):
    vision = VisionConfig(side=8, patch=2, width=12, layers=1, heads=2, hidden=16, tokens=4)
    text = distilled(model=replace(distilled().model, vision=vision))
    open_teacher(text)  # of whose rows none has an image
    data = replace(text.data, images=ImageRows(store="none"))
    with pytest.raises(UserError, match="sees images by None, the model by VisionConfig"):
        open_teacher(replace(text, data=data))


def test_what_cannot_teach_is_refused_in_a_line(distilled, teacher_run):
    with pytest.raises(UserError, match="'no/where' does not exist"):
        open_teacher(distilled(online={"weights": "no/where"}))
    smaller = replace(distilled().model, vocabulary=32)
    line = "has a vocabulary of 64, the model one of 32"
    with pytest.raises(UserError, match=line):
        open_teacher(distilled(model=smaller))
    known = distilled(model=smaller, online={"weights": "no/where", "model": teacher_run.model})
    with pytest.raises(UserError, match=line):
        abstract_teacher(known)
    other = replace(teacher_run.model, width=48)
    with pytest.raises(UserError, match="holds another model than the config"):
        open_teacher(distilled(online={"model": other}))


@pytest.fixture(scope="module")
def losses_of(distilled, batch_of, mesh_of):
    """The scalars of STEPS steps of a config on its mesh, and the compiled step and its teacher."""

    def run(config):
        mesh = config.mesh
        with mesh_of(mesh.replica, mesh.data, mesh.seq):
            on_mesh = jax.sharding.get_mesh()
            state, teacher, step = initial_state(config), load_teacher(config), make_step(config)
            found = []
            for number in range(STEPS):
                batch = place(batch_of(number), on_mesh, config.data.batch_rows)
                state, scalars = step(state, batch, teacher)
                found.append([float(scalars[name]) for name in ("loss", "gradient_norm")])
        assert step._cache_size() == 1
        assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(teacher))
        return found

    return run


@pytest.fixture(scope="module")
def on_one_device(distilled, losses_of):
    return losses_of(distilled())


@pytest.mark.parametrize(
    ("mesh", "sharding"), [((2, 2, 2), "split"), ((1, 8, 1), "split"), ((1, 2, 4), "whole")]
)
def test_on_any_mesh_it_teaches_the_same(mesh, sharding, distilled, losses_of, on_one_device):
    found = losses_of(distilled(*mesh, online={"sharding": sharding}))
    assert_close(found, on_one_device, "deep fp32")
    assert len({loss for loss, _ in found}) == STEPS


def test_in_microbatches_it_teaches_the_same(distilled, losses_of, on_one_device):
    assert_close(losses_of(distilled(1, 2, 2, accumulation=2)), on_one_device, "deep fp32")


def test_the_state_knows_nothing_of_it(distilled, run_on, mesh_of):
    with mesh_of():
        plain, taught_one = (abstract_state(c) for c in (run_on(shallow=True), distilled()))
    assert by_path(plain) == by_path(taught_one)


@pytest.mark.parametrize("mesh", [ONE, (2, 2, 2)])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(distilled, batch_of, mesh_of, mesh):
    """The whole distribution as target: the gradient is that of its own entropy, zero."""
    config = distilled(*mesh, sampler=Dense())
    with mesh_of(*mesh):
        batch = place(batch_of(0), jax.sharding.get_mesh(), config.data.batch_rows)
        weight = 1 / batch.weights_bt.sum()
        model = jax.jit(lambda: Gemma(config.model, ComputeConfig(dtype="float32"), nnx.Rngs(3)))()

        def norm(sampler):
            loss = dataclasses.replace(config.loss, sampler=sampler)

            def of(student):
                return training_loss(student, batch, weight, loss, model)[0]

            run = jax.jit(lambda model: summed(jax.grad(of)(shared(model)), model))
            gradient = run(model)
            return np.sqrt(sum(np.square(x).sum() for x in by_path(gradient).values()))

        assert norm(Dense()) < TOLERANCES["fp32"] * norm(TopK(candidates=4))


def test_draws_are_of_the_row_and_the_place_in_it(batch_of, mesh_of):
    tokens = batch_of(0).tokens_bt.copy()
    tokens[3] = tokens[1]
    with mesh_of():
        draws = np.asarray(jax.jit(_draws, static_argnums=1)(jnp.asarray(tokens), 5))
        other = np.asarray(jax.jit(_draws, static_argnums=1)(jnp.asarray(tokens), 6))
    assert draws.dtype == np.uint32
    np.testing.assert_array_equal(draws[3], draws[1])
    assert len(np.unique(draws)) == draws.size - draws.shape[1]
    assert (draws != other).all()
    changed = tokens.copy()
    changed[1, -1] ^= 1
    with mesh_of(2, 2, 2):
        mesh = jax.sharding.get_mesh()
        batch = place(replace(batch_of(0), tokens_bt=changed), mesh, len(tokens))
        again = np.asarray(jax.jit(_draws, static_argnums=1)(batch.tokens_bt, 5))
    np.testing.assert_array_equal(np.delete(again, 1, axis=0), np.delete(draws, 1, axis=0))
    assert (again[1] != draws[1]).all()


def test_candidates_of_a_row_are_the_same_in_any_batch(distilled, batch_of, mesh_of):
    """So what is drawn in the step is what was drawn for a store."""
    config = distilled()

    def candidates(mesh, batch):
        with mesh_of(*mesh):
            batch = place(batch, jax.sharding.get_mesh(), config.data.batch_rows)
            run = jax.jit(taught, static_argnums=2)
            found = run(load_teacher(config), batch, config.loss)
            return np.asarray(found.candidates_btq), np.asarray(found.probabilities_btq)

    batch, order = batch_of(0), np.random.default_rng(0).permutation(8)
    one = candidates(ONE, batch)
    many = candidates((1, 4, 2), jax.tree.map(lambda x: x[order], batch))
    is_text = batch.segments_bt[order] > 0  # what a teacher makes of padding is of no account
    np.testing.assert_array_equal(many[0][is_text], one[0][order][is_text])
    assert_close(many[1][is_text], one[1][order][is_text], "deep fp32")
