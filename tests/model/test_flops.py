import jax
import pytest
from flax import nnx

from gemma_train.model import ComputeConfig, Gemma, sizes
from gemma_train.model.flops import parameter_count, training_flops_per_token

SIZES = [name for name in dir(sizes) if name.startswith("GEMMA")]


@pytest.mark.parametrize("name", SIZES)
def test_the_formula_counts_the_parameters_that_the_model_declares(name):
    config = getattr(sizes, name)
    model = nnx.eval_shape(lambda: Gemma(config, ComputeConfig(), nnx.Rngs(0)))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("name", ["GEMMA1_2B", "GEMMA2_27B", "GEMMA3_1B"])
@pytest.mark.parametrize("length", [64, 700, 1500])
def test_flops_are_six_a_weight_and_twelve_a_visible_pair_and_head_dimension(name, length):
    config = getattr(sizes, name)
    weights = parameter_count(config)
    model = nnx.eval_shape(lambda: Gemma(config, ComputeConfig(), nnx.Rngs(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        weights -= leaf.size if "norm" in jax.tree_util.keystr(path) else 0
    pairs = 0
    for kind in config.kinds:
        window = config.window if kind == "local" else length
        pairs += sum(min(position + 1, window) for position in range(length))
    heads = config.query_heads * config.head_dimension
    expected = 6 * weights + 12 * heads * pairs / length
    assert training_flops_per_token(config, length) == pytest.approx(expected, rel=1e-12)
