"""AdamW against the same written out in NumPy; the schedule at its edges; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gemma_train.errors import UserError
from gemma_train.optimizer import OptimizerConfig, decays, learning_rate, make_optimizer
from tests.tolerances import assert_close


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    schedule = learning_rate(config, steps)
    return np.array([float(schedule(step)) for step in range(steps + 3)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_in_equal_steps_to_its_peak(schedule):
    found = rates(OptimizerConfig(peak_lr=0.5, warmup_steps=4, schedule=schedule), 10)
    assert_close(found[:5], [0.1, 0.2, 0.3, 0.4, 0.5], "fp32")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule):
    found = rates(OptimizerConfig(peak_lr=0.5, warmup_steps=0, schedule=schedule), 10)
    assert found[0] == pytest.approx(0.5)
    assert found.argmax() == 0


def test_the_fall_is_the_schedule_s_and_ends_at_its_fraction():
    fall = np.arange(8) / 7
    config = {"peak_lr": 2.0, "warmup_steps": 2, "final_lr_fraction": 0.1}
    cosine = rates(OptimizerConfig(**config, schedule="cosine"), 10)
    linear = rates(OptimizerConfig(**config, schedule="linear"), 10)
    constant = rates(OptimizerConfig(**config, schedule="constant"), 10)
    assert_close(cosine[2:10], 2 * (0.1 + 0.9 * (1 + np.cos(np.pi * fall)) / 2), "fp32")
    assert_close(linear[2:10], 2 * (1 - 0.9 * fall), "fp32")
    assert_close(constant[2:10], np.full(8, 2.0), "fp32")
    # Beyond the end nothing falls further.
    assert_close(cosine[10:], [0.2] * 3, "fp32")
    assert_close(linear[10:], [0.2] * 3, "fp32")


@pytest.mark.parametrize(("warmup", "steps"), [(100, 3), (3, 3), (0, 1), (1, 1)])
def test_a_run_shorter_than_its_warm_up_has_finite_rates_up_to_its_peak(warmup, steps):
    found = rates(OptimizerConfig(peak_lr=1.0, warmup_steps=warmup), steps)
    assert np.isfinite(found).all()
    assert (found[:steps] > 0).all()
    assert (np.diff(found[: min(warmup, steps)]) > 0).all()
    assert found.max() <= 1.0


def tree(seed: int, scale: float = 1.0) -> dict:
    random = np.random.default_rng(seed)
    shapes = {"query": (3, 4), "query_norm": (4,), "final_norm": (3,), "table": (5, 3)}
    return {name: np.float32(random.normal(size=s) * scale) for name, s in shapes.items()}


def adamw(config: OptimizerConfig, parameters: dict, gradients: list[dict], steps: int) -> dict:
    """The parameters after a step for each gradient, written out."""
    parameters = {name: np.float64(leaf) for name, leaf in parameters.items()}
    first, second = dict.fromkeys(parameters, 0.0), dict.fromkeys(parameters, 0.0)
    for number, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in gradient.values()))
        shrink = min(1.0, config.clip_norm / norm)
        rate = float(learning_rate(config, steps)(number))
        for name in parameters:
            g = np.float64(gradient[name]) * shrink
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            mean = first[name] / (1 - config.beta1 ** (number + 1))
            square = second[name] / (1 - config.beta2 ** (number + 1))
            update = mean / (np.sqrt(square) + config.epsilon)
            if not name.endswith("norm"):
                update = update + config.weight_decay * parameters[name]
            parameters[name] = parameters[name] - rate * update
    return parameters


# Adam forgives a constant factor in its gradients: only a large epsilon shows whether they are
# clipped at every step.
@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
@pytest.mark.parametrize("clip_norm", [1.0, 1e6])
def test_it_is_adamw_with_clipping_and_without_decay_of_norms(clip_norm, epsilon):
    config = OptimizerConfig(
        peak_lr=0.1, warmup_steps=2, weight_decay=0.3, clip_norm=clip_norm, epsilon=epsilon
    )
    gradients = [tree(1), tree(2, 0.01), tree(3, 10.0)]
    parameters = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make_optimizer(config, 5)
    moments = optimizer.init(parameters)
    for gradient in gradients:
        updates, moments = optimizer.update(gradient, moments, parameters)
        parameters = optax.apply_updates(parameters, updates)
    expected = adamw(config, tree(0), gradients, 5)
    for name, leaf in parameters.items():
        assert_close(leaf, expected[name], "fp32", name)


def test_norm_scales_alone_do_not_decay():
    names = ("query", "pre_attention_norm", "query_norm", "final_norm", "table")
    found = decays({"pattern": [{name: jnp.zeros(2) for name in names}]})["pattern"][0]
    assert found == {name: not name.endswith("norm") for name in names}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak_lr", float("nan")),
        ("peak_lr", float("inf")),
        ("peak_lr", -1e-3),
        ("peak_lr", 0.0),
        ("epsilon", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", float("nan")),
        ("final_lr_fraction", 1.5),
        ("beta1", -0.1),
        ("beta1", 1.0),
        ("beta2", 1.0),
        ("beta2", float("nan")),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_line_that_names_them(field, value):
    with pytest.raises(UserError, match=rf"^optimizer\.{field} is {value}: it must ") as refusal:
        OptimizerConfig(**{field: value})
    assert "\n" not in str(refusal.value)
