"""The loss against a teacher's candidates, from a whole model, against its definition."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from gemma_train.axes import activation
from gemma_train.data.example import Batch
from gemma_train.leaves import by_path
from gemma_train.losses.distillation import Distillation, Stored, distillation_loss
from gemma_train.losses.next_token import NextToken, next_token_loss
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.placement import place
from tests.tolerances import assert_close, assert_close_leaves

ROWS, LENGTH, KEPT = 8, 16, 6
CONFIG = GemmaConfig(
    vocabulary=32,
    width=16,
    layers=2,
    query_heads=2,
    key_value_heads=1,
    head_dimension=8,
    hidden=24,
    context=LENGTH,
    pattern=("local", "global"),
    window=5,
    final_soft_cap=2.0,
)
TEACHER = Stored(folder="none", weights="none")
PLAIN = Distillation(teacher=TEACHER)
CONFIGS = {
    "as the reports": PLAIN,
    "with the text": replace(PLAIN, hard_label_weight=0.3, z_loss=0.05, chunk=5),
    "with a temperature": replace(PLAIN, temperature=2.0, z_loss=0.05),
    "with both": replace(PLAIN, temperature=0.8, hard_label_weight=0.3, z_loss=0.05),
    "over the candidates": replace(PLAIN, student="candidates", hard_label_weight=0.3),
    "of the text alone": replace(PLAIN, hard_label_weight=1.0, temperature=3.0),
}


@pytest.fixture(scope="module")
def batch(packed):
    """Packed rows with padding, weights, and candidates: duplicates, and positions without any."""
    positions, segments = packed(ROWS, LENGTH, padding=3)
    random = np.random.default_rng(0)
    tokens = random.integers(0, CONFIG.vocabulary, (ROWS, LENGTH + 1), dtype=np.int32)
    probabilities = random.exponential(size=(ROWS, LENGTH, KEPT)).astype(np.float32) / KEPT
    probabilities[random.random((ROWS, LENGTH)) < 0.25] = 0.0
    return Batch(
        tokens_bt=tokens[:, :-1],
        targets_bt=tokens[:, 1:],
        positions_bt=positions,
        segments_bt=segments,
        weights_bt=np.float32((segments > 0) & (random.random((ROWS, LENGTH)) < 0.7)),
        candidates_btq=random.integers(0, CONFIG.vocabulary, (ROWS, LENGTH, KEPT), dtype=np.int32),
        probabilities_btq=probabilities,
    )


@pytest.fixture
def on(mesh_of, batch):
    """Makes (a model, the batch) on a mesh of (replica, data, seq), which is in force."""

    def make(*mesh):
        compute = ComputeConfig(dtype="float32", remat="none")
        with mesh_of(*mesh):
            model = jax.jit(lambda: Gemma(CONFIG, compute, nnx.Rngs(0)))()
            return model, place(batch, jax.sharding.get_mesh(), ROWS)

    return make


def naive(model, batch, config):
    """(sum of losses, sum of the text's cross-entropies), from all the logits."""
    states, _ = model(batch.tokens_bt, batch.positions_bt, batch.segments_bt)
    logits = model.unembed(states)
    ids, p = np.asarray(batch.candidates_btq), np.asarray(batch.probabilities_btq)
    target = np.zeros((*ids.shape[:2], CONFIG.vocabulary), np.float32)
    b, t, _ = np.indices(ids.shape)
    np.add.at(target, (b, t, ids), p)
    taught, weights = target.sum(-1) > 0, batch.weights_bt

    def loss(logits, target, seen=None):
        """(loss of target against logits, z-loss) by position."""
        normalizer = jax.nn.logsumexp(logits, axis=-1, where=seen, keepdims=True)
        log_p = logits - normalizer
        return -jnp.sum(target * log_p, -1), config.z_loss * normalizer[..., 0] ** 2

    text = jax.nn.one_hot(batch.targets_bt, CONFIG.vocabulary)
    hard, z_loss = loss(logits, text)
    heat, share = config.temperature, config.hard_label_weight
    seen = (target > 0) | ~taught[..., None] if config.student == "candidates" else None
    soft, soft_z_loss = loss(logits / heat, target, seen)
    apart = heat != 1.0 or config.student == "candidates"
    if apart and share == 0.0:
        return jnp.sum(weights * (heat**2 * soft + taught * soft_z_loss)), jnp.sum(weights * hard)
    mixed = (1 - share) * heat**2 * soft + jnp.where(taught, share, 1.0) * hard
    return jnp.sum(weights * (mixed + z_loss)), jnp.sum(weights * hard)


def with_gradient(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_its_definition_and_so_is_its_gradient(config, on, mesh_of):
    model, batch = on(1, 1, 1)
    weight = jnp.float32(1 / np.sum(batch.weights_bt))
    with mesh_of():
        found = with_gradient(lambda m, b: distillation_loss(m, b, weight, config))(model, batch)

        def definition(model):
            loss, cross_entropy = naive(model, batch, config)
            return weight * loss, weight * cross_entropy

        wanted = with_gradient(definition)(model)
    assert_close(found[0][0], wanted[0][0], "fp32", "loss")
    assert_close(found[0][1], wanted[0][1], "fp32", "cross-entropy")
    assert_close_leaves(by_path(found[1]), by_path(wanted[1]), "deep fp32")


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("config", ["with the text", "with both"])
def test_on_eight_devices_it_is_the_same(config, mesh, on, mesh_of):
    config, found = CONFIGS[config], []
    for shape in ((1, 1, 1), mesh):
        model, batch = on(*shape)
        with mesh_of(*shape):
            loss = with_gradient(lambda m, b: distillation_loss(m, b, jnp.float32(0.01), config))
            found.append(jax.tree.map(np.asarray, loss(model, batch)))
    assert_close(found[1][0][0], found[0][0][0], "fp32")
    assert_close(found[1][0][1], found[0][0][1], "fp32")
    assert_close_leaves(by_path(found[1][1]), by_path(found[0][1]), "deep fp32")


@pytest.mark.parametrize("config", [PLAIN, CONFIGS["with the text"]], ids=["plain", "mixed"])
def test_where_the_teacher_is_silent_the_text_is_learnt(config, on, mesh_of):
    model, batch = on(1, 1, 1)
    silent = replace(batch, probabilities_btq=0 * batch.probabilities_btq)
    usual = NextToken(z_loss=config.z_loss)
    with mesh_of():
        one, other = (
            with_gradient(lambda m, f=f, c=c: f(m, silent, jnp.float32(0.01), c))(model)
            for f, c in ((distillation_loss, config), (next_token_loss, usual))
        )
    assert_close(one[0][0], other[0][0], "fp32")
    assert_close(one[0][1], other[0][1], "fp32")
    assert_close_leaves(by_path(one[1]), by_path(other[1]), "deep fp32")


@pytest.mark.parametrize("changes", [{"temperature": 2.0}, {"student": "candidates"}], ids=repr)
def test_without_the_text_a_silent_teacher_teaches_nothing(changes, on, mesh_of):
    model, batch = on(1, 1, 1)
    silent = replace(batch, probabilities_btq=0 * batch.probabilities_btq)
    config = replace(PLAIN, z_loss=0.05, **changes)
    with mesh_of():
        (loss, cross_entropy), gradient = with_gradient(
            lambda m: distillation_loss(m, silent, jnp.float32(0.01), config)
        )(model)
    assert float(loss) == 0.0 < float(cross_entropy)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_targets_without_weight_do_not_matter(on, mesh_of):
    model, batch = on(1, 1, 1)
    counts = np.asarray(batch.weights_bt)[..., None] > 0
    other = np.where(counts, batch.candidates_btq, 7)
    with mesh_of():
        sharding = NamedSharding(jax.sharding.get_mesh(), activation("btq"))
        changed = replace(batch, candidates_btq=jax.device_put(np.int32(other), sharding))
        loss = jax.jit(lambda b: distillation_loss(model, b, jnp.float32(1), PLAIN)[0])
        assert loss(batch) == loss(changed)
    assert (other != np.asarray(batch.candidates_btq)).any()


def test_a_target_of_one_token_is_the_next_token_loss(on, mesh_of):
    model, batch = on(1, 1, 1)
    one = replace(
        batch,
        candidates_btq=batch.targets_bt[..., None],
        probabilities_btq=jnp.ones_like(batch.weights_bt)[..., None],
    )
    with mesh_of():
        found, wanted = (
            with_gradient(lambda m, f=f, c=c: f(m, one, jnp.float32(0.01), c))(model)
            for f, c in ((distillation_loss, PLAIN), (next_token_loss, NextToken()))
        )
    assert_close(found[0][0], wanted[0][0], "fp32")
    assert_close_leaves(by_path(found[1]), by_path(wanted[1]), "deep fp32")
