"""The loss of a batch against its definition from all the logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.data.example import Batch
from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.losses.next_token import NextToken, next_token_loss
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from tests.tolerances import assert_close, assert_close_leaves

ROWS, LENGTH = 3, 10
CONFIG = GemmaConfig(
    vocabulary=30,
    width=8,
    layers=2,
    query_heads=2,
    key_value_heads=1,
    head_dimension=4,
    hidden=12,
    context=LENGTH,
    pattern=("local", "global"),
    window=3,
    final_soft_cap=2.0,
)


@pytest.fixture(scope="module")
def sample(mesh_of, packed):
    """(a model, a packed batch with padding and weights, both on one device)."""
    positions, segments = packed(ROWS, LENGTH, padding=3)
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.vocabulary, (ROWS, LENGTH + 1), dtype=np.int32)
    batch = Batch(
        tokens_bt=tokens[:, :-1],
        targets_bt=tokens[:, 1:],
        positions_bt=positions,
        segments_bt=segments,
        weights_bt=np.float32((segments > 0) & (random.random((ROWS, LENGTH)) < 0.7)),
    )
    with mesh_of():
        compute = ComputeConfig(dtype="float32", remat="none")
        model = jax.jit(lambda: Gemma(CONFIG, compute, nnx.Rngs(0)))()
        mesh = jax.sharding.get_mesh()
        place = NamedSharding(mesh, activation("bt"))
        return model, jax.tree.map(lambda x: jax.device_put(x, place), batch)


def naive(model, batch, z_loss):
    states, _ = model(batch.tokens_bt, batch.positions_bt, batch.segments_bt)
    logits = model.unembed(states)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, batch.targets_bt[..., None], axis=-1)[..., 0]
    tokens = batch.weights_bt.sum()
    cross_entropy = jnp.sum(batch.weights_bt * (normalizer - target)) / tokens
    return cross_entropy + z_loss * jnp.sum(
        batch.weights_bt * normalizer**2
    ) / tokens, cross_entropy


@pytest.mark.parametrize("config", [NextToken(), NextToken(z_loss=0.1, chunk=4)], ids=repr)
def test_it_is_the_mean_over_tokens_with_loss_and_so_is_its_gradient(sample, mesh_of, config):
    model, batch = sample
    weight = jnp.float32(1 / np.sum(batch.weights_bt))

    def loss(model, batch):
        return next_token_loss(model, batch, weight, config)

    def expected(model, batch):
        return naive(model, batch, config.z_loss)

    with mesh_of():
        found, wanted = (
            jax.jit(jax.value_and_grad(f, has_aux=True))(model, batch) for f in (loss, expected)
        )
    assert_close(found[0], wanted[0], "fp32")
    assert_close_leaves(by_path(found[1]), by_path(wanted[1]), "deep fp32")
    if config.z_loss:
        assert float(found[0][0]) > float(found[0][1]) + 0.1, "z-loss is apart from cross-entropy"
    else:
        assert float(found[0][0]) == float(found[0][1])


def test_targets_without_weight_do_not_matter(sample, mesh_of):
    model, batch = sample
    changed = np.where(np.asarray(batch.weights_bt) > 0, batch.targets_bt, 29)
    with mesh_of():
        place = batch.targets_bt.sharding
        loss = jax.jit(lambda *a: next_token_loss(*a, jnp.float32(1), NextToken()))
        other = replace(batch, targets_bt=jax.device_put(np.int32(changed), place))
        assert loss(model, batch)[0] == loss(model, other)[0]
    assert (changed != np.asarray(batch.targets_bt)).any()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"z_loss": -0.1}, r"^loss\.z_loss is -0\.1: "),
        ({"z_loss": float("nan")}, r"^loss\.z_loss is nan: "),
        ({"chunk": 0}, r"^loss\.chunk is 0: "),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_line(values, line):
    with pytest.raises(UserError, match=line) as refusal:
        NextToken(**values)
    assert "\n" not in str(refusal.value)
