"""Bytes of a chip: the state's exactly, activations by a model that follows the config."""

import math
from dataclasses import replace

import jax
import pytest

from gemma_train.config import Distillation, Online, Priority, Stored
from gemma_train.mesh import make_mesh
from gemma_train.planning.memory import activation_bytes, state_bytes, stored_bytes
from gemma_train.teachers.online import abstract_teacher
from gemma_train.training.state import initial_state

TINY = {
    "model__vocabulary": 64,
    "model__width": 16,
    "model__layers": 8,
    "model__head_dimension": 8,
    "model__hidden": 32,
}


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_counted_bytes_of_the_state_are_those_that_lie_on_a_device(mesh, pod_run):
    axes = dict(zip(("mesh__replica", "mesh__data", "mesh__seq"), mesh, strict=True))
    config = pod_run(**TINY, **axes, mesh__slices=1)
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[: config.mesh.devices])):
        state = initial_state(config)
    device = jax.devices()[0]

    def lying(tree) -> int:
        shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    counted = state_bytes(config)
    assert counted.parameters == counted.gradients == lying(state.model)
    assert counted.moments == lying(state.moments)


def test_moments_are_twice_the_parameters_up_to_counters(pod_run):
    state = state_bytes(pod_run())
    assert 0 <= state.moments - 2 * state.parameters < 100


@pytest.mark.parametrize(
    ("change", "smaller"),
    [
        ({"compute__remat": "full"}, {"compute__remat": "none"}),
        ({"compute__remat": "full"}, {"compute__remat": "save_named"}),
        ({"data__batch_rows": 64}, {"data__batch_rows": 256}),
        ({"data__batch_rows": 256, "accumulation": 4}, {"data__batch_rows": 256}),
        ({"mesh__data": 8, "mesh__seq": 2, "data__batch_rows": 64}, {"data__batch_rows": 128}),
    ],
)
def test_what_saves_memory_saves_it_in_the_model(change, smaller, pod_run):
    assert activation_bytes(pod_run(**change)).peak < activation_bytes(pod_run(**smaller)).peak


def test_a_smaller_chunk_of_the_loss_holds_fewer_logits(pod_run):
    small, large = (activation_bytes(pod_run(loss__chunk=chunk)) for chunk in (256, 1024))
    assert small.logits < large.logits
    assert small.saved == large.saved


@pytest.mark.parametrize("sharding", ["split", "whole"])
def test_a_teachers_bytes_are_those_that_lie_on_a_device(sharding, pod_run):
    axes = {"mesh__replica": 2, "mesh__data": 2, "mesh__seq": 2, "mesh__slices": 1}
    plain = pod_run(**TINY, **axes)
    model = replace(plain.model, width=32, layers=3)
    teacher = Online(weights="nowhere", model=model, sharding=sharding)
    config = replace(plain, loss=Distillation(teacher=teacher, sampler=Priority(candidates=64)))
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:8])):
        leaves = jax.tree.leaves(abstract_teacher(config))
    lying = sum(2 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    counted = state_bytes(config)
    assert counted.teacher == lying
    assert counted.total - lying == state_bytes(plain).total
    assert activation_bytes(config).teacher > 0 == activation_bytes(plain).teacher


@pytest.mark.parametrize("accumulation", [1, 4])
def test_candidates_are_a_microbatchs_and_a_stores_all_of_the_step(accumulation, pod_run):
    """A store's come with the batch, which stays while its microbatches are taken from it."""
    plain = pod_run(accumulation=accumulation, data__batch_rows=128)
    online, stored = (
        replace(plain, loss=Distillation(teacher=teacher, sampler=Priority(candidates=64)))
        for teacher in (
            Online(weights="nowhere", model=plain.model),
            Stored(folder="nowhere", weights="nowhere"),
        )
    )
    step = plain.step_tokens // plain.mesh.devices * 64 * (4 + 4)
    assert stored_bytes(plain) == stored_bytes(online) == activation_bytes(plain).candidates == 0
    assert stored_bytes(stored) == step
    assert activation_bytes(online).candidates == step / accumulation
    beside = step / accumulation if accumulation > 1 else 0
    assert activation_bytes(stored).candidates == step + beside
