"""Logits, loss, gradients and two steps of training beside transformers on PyTorch.

`make_fixtures.py` made the folders in fixtures/: a small random model of each generation and form,
with what transformers computes from it. Every mistake that an implementation of Gemma is known to
make is made here on purpose, and must be seen.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma_train import placement
from gemma_train.config import DataConfig, RunConfig, TokenSource
from gemma_train.conversion import load_model, named, open_weights
from gemma_train.conversion.load import load
from gemma_train.conversion.tensors import Tensor
from gemma_train.data.example import Batch
from gemma_train.losses import mean_next_token_loss, mean_next_token_loss_and_gradient
from gemma_train.model import ComputeConfig, Gemma, attention, gemma, layers
from gemma_train.training.state import imported_state
from gemma_train.training.step import make_step
from tests.tolerances import TOLERANCES

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("gemma1_mqa", "gemma1_mha", "gemma2_gqa", "gemma3_long", "gemma3_mqa")
LOCAL, GROUPED = ("gemma2_gqa", "gemma3_long", "gemma3_mqa"), ("gemma2_gqa", "gemma3_long")
KINDS = ("plain", "packed")


@dataclass(frozen=True)
class Fixture:
    """A small model of transformers, and what transformers computes from it."""

    name: str

    @property
    def folder(self) -> str:
        return str(FIXTURES / self.name)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        with np.load(FIXTURES / self.name / "reference.npz") as found:
            return dict(found)

    @cached_property
    def model(self) -> Gemma:
        return load_model(self.folder)

    def changed(self, **changes) -> Gemma:
        """The model with the same weights and another config."""
        weights = open_weights(self.folder)
        weights = replace(weights, config=replace(weights.config, **changes))
        with jax.set_mesh(self.model.embedding.table[...].sharding.mesh):
            return load(weights, ComputeConfig(dtype="float32", remat="none"))

    def inputs(self, kind: str) -> list[np.ndarray]:
        return [self.reference[f"{kind}/{part}"] for part in ("tokens", "positions", "segments")]

    def named(self, prefix: str) -> dict[str, np.ndarray]:
        """What is recorded by Hugging Face's names of the parameters."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.reference.items()
            if name.startswith(prefix)
        }

    def check_logits(self, model: Gemma, kind: str) -> None:
        inputs = self.inputs(kind)
        error = np.abs(model.logits(*inputs) - self.reference[f"{kind}/logits"])
        error = error[inputs[2] > 0].max()
        print(f"{self.name}, {kind}: logits off by {error:.1e}")  # pytest -s
        assert error <= TOLERANCES["parity logits"], f"a logit is off by {error}"


_FIXTURES = {name: Fixture(name) for name in NAMES}


@pytest.fixture(params=NAMES)
def fixture(request) -> Fixture:
    return _FIXTURES[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(fixture, kind):
    fixture.check_logits(fixture.model, kind)


def test_positions_and_segments_have_defaults(fixture):
    tokens, positions, segments = fixture.inputs("plain")
    given = fixture.model.logits(tokens, positions, segments)
    np.testing.assert_array_equal(fixture.model.logits(tokens), given)
    tokens, positions, segments = fixture.inputs("packed")
    counted = fixture.model.logits(tokens, segment_ids_bt=segments)
    given = fixture.model.logits(tokens, positions, segments)
    np.testing.assert_allclose(counted[segments > 0], given[segments > 0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(fixture, kind):
    tokens, _, segments = fixture.inputs(kind)
    loss = mean_next_token_loss(fixture.model, tokens, segment_ids_bt=segments)
    error = abs(loss - fixture.reference[f"{kind}/loss"])
    print(f"{fixture.name}, {kind}: loss off by {error:.1e}")
    assert error <= TOLERANCES["parity loss"]


def test_every_gradient_is_that_of_transformers(fixture):
    _, gradient = mean_next_token_loss_and_gradient(fixture.model, *fixture.inputs("packed"))
    found, wanted = named(gradient, "hf"), fixture.named("packed/gradient/")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        print(f"{fixture.name}: gradient of {name} off by {error:.1e} of its length")
        assert error <= TOLERANCES["parity gradient"], name


def test_a_user_may_compile_the_model_with_more_of_their_own(fixture):
    tokens = fixture.inputs("plain")[0]
    wanted = fixture.model.logits(tokens)
    for compiled in (
        jax.jit(fixture.model.logits),
        jax.jit(lambda tokens: fixture.model.logits(tokens)),
        lambda tokens: jax.jit(lambda model, tokens: model.logits(tokens))(fixture.model, tokens),
    ):
        np.testing.assert_allclose(compiled(tokens), wanted, atol=1e-4)
    loss, _ = mean_next_token_loss_and_gradient(fixture.model, tokens)
    for compiled in (
        jax.jit(lambda tokens: mean_next_token_loss(fixture.model, tokens)),
        lambda tokens: jax.jit(jax.value_and_grad(mean_next_token_loss))(fixture.model, tokens)[0],
    ):
        np.testing.assert_allclose(compiled(tokens), loss, atol=1e-5)


def test_the_loss_can_be_differentiated_by_a_user(fixture):
    inputs = fixture.inputs("packed")
    mine = jax.grad(mean_next_token_loss)(fixture.model, *inputs).parameters()
    _, ours = mean_next_token_loss_and_gradient(fixture.model, *inputs)
    for name, leaf in ours.parameters().items():
        np.testing.assert_allclose(mine[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 1, 1), (1, 2, 2), (1, 1, 4)])
def test_a_model_loads_onto_a_mesh(mesh_of, shape):
    fixture = _FIXTURES["gemma3_long"]
    with mesh_of(*shape):
        model = load_model(fixture.folder)
        assert model.embedding.table[...].sharding.is_fully_replicated == (shape == (2, 1, 1))
        fixture.check_logits(model, "packed")
        _, gradient = mean_next_token_loss_and_gradient(model, *fixture.inputs("packed"))
    _, alone = mean_next_token_loss_and_gradient(fixture.model, *fixture.inputs("packed"))
    for name, leaf in named(alone, "hf").items():
        np.testing.assert_allclose(named(gradient, "hf")[name], leaf, rtol=1e-3, atol=1e-5)


def test_bfloat16_halves_the_parameters_and_keeps_the_logits_near(fixture):
    model = load_model(fixture.folder, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in model.parameters().values()} == {"bfloat16"}
    tokens = fixture.inputs("plain")[0]
    logits, wanted = model.logits(tokens), fixture.model.logits(tokens)
    assert logits.dtype == jnp.float32
    assert np.corrcoef(np.ravel(logits), np.ravel(wanted))[0, 1] > 0.99


def refused(fixture: Fixture, model: Gemma) -> None:
    """The check of the logits fails, on rows of one document and on packed ones."""
    for kind in KINDS:
        with pytest.raises(AssertionError, match="a logit is off"):
            fixture.check_logits(model, kind)


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_window_off_by_one_is_seen(name, change):
    fixture = _FIXTURES[name]
    refused(fixture, fixture.changed(window=fixture.model.config.window + change))


def test_a_rope_factor_left_off_is_seen():
    fixture = _FIXTURES["gemma3_long"]
    assert fixture.model.config.global_rope_factor == 8
    refused(fixture, fixture.changed(global_rope_factor=1.0))


@pytest.mark.parametrize("name", ["gemma3_long", "gemma3_mqa"])
def test_one_rope_base_for_all_layers_is_seen(name):
    refused(_FIXTURES[name], _FIXTURES[name].changed(global_rope_base=10_000.0))


@pytest.mark.parametrize("name", GROUPED)
def test_a_query_scale_taken_from_the_head_dimension_is_seen(name):
    refused(_FIXTURES[name], _FIXTURES[name].changed(query_scale=None))


@pytest.mark.parametrize("cap", ["attention_soft_cap", "final_soft_cap"])
def test_a_soft_cap_left_off_is_seen(cap):
    refused(_FIXTURES["gemma2_gqa"], _FIXTURES["gemma2_gqa"].changed(**{cap: None}))


@pytest.mark.parametrize("name", GROUPED)
def test_query_heads_grouped_in_another_order_are_seen(name):
    fixture = _FIXTURES[name]
    heads, groups = fixture.model.config.query_heads, fixture.model.config.key_value_heads
    order = np.arange(heads).reshape(groups, -1).T.ravel()  # head m uses key head m % k
    weights = open_weights(fixture.folder)
    tensors = dict(weights.tensors)
    for name, tensor in weights.tensors.items():
        if name.endswith(("attention/query", "attention/output")):
            axis = 1 if name.endswith("query") else 0
            permuted = np.take(tensor.read(), order, axis)
            tensors[name] = Tensor(tensor.shape, tensor.dtype, lambda array=permuted: array)
    with jax.set_mesh(fixture.model.embedding.table[...].sharding.mesh):
        model = load(replace(weights, tensors=tensors), fixture.model.compute)
    refused(fixture, model)


@pytest.fixture
def fresh_programs():
    """Programs compiled before a mistake was made do not hide it, nor those after show it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("fresh_programs")
def test_an_exact_gelu_is_seen(fixture, monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(layers.jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))
    refused(fixture, fixture.model)


@pytest.mark.usefixtures("fresh_programs")
def test_a_norm_that_multiplies_by_w_is_seen(fixture, monkeypatch):
    norm = layers.rms_norm
    for module in (gemma, attention):
        monkeypatch.setattr(module, "rms_norm", lambda x, scale: norm(x, scale - 1.0))
    refused(fixture, fixture.model)


@pytest.mark.usefixtures("fresh_programs")
def test_an_embedding_scale_rounded_to_bfloat16_is_seen(fixture, monkeypatch):
    root = fixture.model.config.width**0.5
    embed, off = layers.Embedding.__call__, float(jnp.bfloat16(root)) / root
    monkeypatch.setattr(layers.Embedding, "__call__", lambda *inputs: embed(*inputs) * off)
    refused(fixture, fixture.model)


def run_of(fixture: Fixture) -> RunConfig:
    """A run that begins from the fixture's weights."""
    rows, length = fixture.inputs("packed")[0].shape
    data = DataConfig(
        tokenizer="none",
        train=(TokenSource(path="none"),),
        sequence_length=length,
        batch_rows=rows,
    )
    return RunConfig(
        folder="nowhere",
        model=fixture.model.config,
        data=data,
        steps=2,
        initial_weights=fixture.folder,
        compute=ComputeConfig(dtype="float32"),
    )


def test_two_steps_of_plain_descent_are_those_of_pytorch(fixture, mesh_of):
    reference, inputs = fixture.reference, fixture.inputs("packed")
    with mesh_of(1, 1, 1):
        model = imported_state(run_of(fixture), open_weights(fixture.folder)).model
        optimizer = optax.sgd(float(reference["sgd/learning_rate"]))
        moments, losses = optimizer.init(model), []
        for _ in range(2):
            loss, gradient = mean_next_token_loss_and_gradient(model, *inputs)
            losses.append(loss)
            updates, moments = optimizer.update(gradient, moments, model)
            model = optax.apply_updates(model, updates)
        losses.append(mean_next_token_loss(model, *inputs))
    np.testing.assert_allclose(losses, reference["sgd/losses"], atol=1e-4)
    trained, begun = fixture.named("sgd/parameter/"), named(fixture.model, "hf")
    assert bool(trained) == (fixture.name in GROUPED)
    for name, value in trained.items():
        assert np.abs(named(model, "hf")[name] - value).max() <= 1e-4, name
        step = np.linalg.norm(value - begun[name])  # far smaller for some parameters
        assert np.linalg.norm(named(model, "hf")[name] - value) <= 2e-3 * step, name


def test_training_continues_at_the_imported_loss(fixture, mesh_of):
    config = run_of(fixture)
    tokens, positions, segments = fixture.inputs("packed")
    following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
    batch = Batch(
        tokens_bt=tokens,
        targets_bt=np.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        positions_bt=positions,
        segments_bt=segments,
        weights_bt=np.float32((segments == following) & (segments > 0)),
    )
    with mesh_of(1, 1, 1):
        state = imported_state(config, open_weights(fixture.folder))
        mesh = jax.sharding.get_mesh()
        _, scalars = make_step(config)(state, placement.place(batch, mesh, len(tokens)))
    error = abs(scalars["cross_entropy"] - fixture.reference["packed/loss"])
    assert error <= TOLERANCES["parity loss"]
