"""Bytes of a chip: the state's exactly, activations by a model that follows the config."""

import jax
import pytest

from gemma_train.mesh import make_mesh
from gemma_train.planning.memory import activation_bytes, state_bytes
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
