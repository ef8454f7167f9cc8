"""The ten published sizes, held to numbers written down apart from the code."""

import math

import pytest
from flax import nnx

from gemma_train.errors import UserError
from gemma_train.leaves import by_path
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig, sizes

# (embedding, body), text only, without padding rows of the vocabulary: counted by hand; rounded
# they are the reports' figures (1B: 302 and 698 million, and so on).
PARAMETERS = {
    "GEMMA1_2B": (524_288_000, 1_981_884_416),
    "GEMMA1_7B": (786_432_000, 7_751_248_896),
    "GEMMA2_2B": (589_824_000, 2_024_517_888),
    "GEMMA2_9B": (917_504_000, 8_324_201_984),
    "GEMMA2_27B": (1_179_648_000, 26_047_480_320),
    "GEMMA3_270M": (167_772_160, 100_326_016),
    "GEMMA3_1B": (301_989_888, 697_896_064),
    "GEMMA3_4B": (671_088_640, 3_209_010_688),
    "GEMMA3_12B": (1_006_632_960, 10_759_155_456),
    "GEMMA3_27B": (1_409_286_144, 25_599_716_096),
}
# (local layers, global layers, window, rope bases by kind, query scale, caps, norms after, of q, k)
SHAPES = {
    "GEMMA1_2B": (0, 18, None, (None, 1e4), 256, (None, None), False, False),
    "GEMMA1_7B": (0, 28, None, (None, 1e4), 256, (None, None), False, False),
    "GEMMA2_2B": (13, 13, 4096, (1e4, 1e4), 256, (50, 30), True, False),
    "GEMMA2_9B": (21, 21, 4096, (1e4, 1e4), 256, (50, 30), True, False),
    "GEMMA2_27B": (23, 23, 4096, (1e4, 1e4), 144, (50, 30), True, False),
    "GEMMA3_270M": (15, 3, 512, (1e4, 1e6), 256, (None, None), True, True),
    "GEMMA3_1B": (22, 4, 512, (1e4, 1e6), 256, (None, None), True, True),
    "GEMMA3_4B": (29, 5, 1024, (1e4, 1e6), 256, (None, None), True, True),
    "GEMMA3_12B": (40, 8, 1024, (1e4, 1e6), 256, (None, None), True, True),
    "GEMMA3_27B": (52, 10, 1024, (1e4, 1e6), 168, (None, None), True, True),
}


def config_of(name: str) -> GemmaConfig:
    return getattr(sizes, name)


def test_the_ten_are_all_there_are():
    published = {n for n, value in vars(sizes).items() if isinstance(value, GemmaConfig)}
    assert published == set(PARAMETERS) == set(SHAPES)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_as_many_as_published(name):
    model = nnx.eval_shape(lambda: Gemma(config_of(name), ComputeConfig(), nnx.Rngs(0)))
    counts = {path: math.prod(leaf.shape) for path, leaf in by_path(model).items()}
    embedding = counts.pop("embedding/table")
    assert (embedding, sum(counts.values())) == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_layers_windows_bases_scales_and_caps_are_as_published(name):
    config = config_of(name)
    local, everywhere, window, bases, scale, caps, post_norms, query_key_norm = SHAPES[name]
    assert (config.kinds.count("local"), config.kinds.count("global")) == (local, everywhere)
    assert config.window == window
    assert config.rope("global") == (bases[1], 1.0)
    if local:
        assert config.rope("local") == (bases[0], 1.0)
    assert (config.query_scale or config.head_dimension) == scale
    assert (config.attention_soft_cap, config.final_soft_cap) == caps
    assert (config.post_norms, config.query_key_norm) == (post_norms, query_key_norm)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_global_layer_ends_every_repetition_of_the_pattern(name):
    kinds = config_of(name).kinds
    every = {"1": 1, "2": 2, "3": 6}[name[len("GEMMA")]]
    expected = tuple("local" if (i + 1) % every else "global" for i in range(len(kinds)))
    assert kinds == expected


def tiny(**changes) -> GemmaConfig:
    values = {"vocabulary": 8, "width": 4, "layers": 1, "query_heads": 2, "key_value_heads": 1}
    values |= {"head_dimension": 2, "hidden": 4, "context": 8}
    return GemmaConfig(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"layers": 0}, r"^model\.layers is 0: "),
        ({"key_value_heads": 3}, r"^model\.key_value_heads is 3: it must divide"),
        ({"head_dimension": 3}, r"^model\.head_dimension is 3: "),
        ({"pattern": ()}, r"^model\.pattern is empty: "),
        ({"pattern": ("local",)}, r"^model\.window is None: "),
        ({"pattern": ("local",), "window": 0}, r"^model\.window is 0: "),
    ],
)
def test_a_shape_that_cannot_be_is_refused_in_one_line(changes, line):
    with pytest.raises(UserError, match=line) as refusal:
        tiny(**changes)
    assert "\n" not in str(refusal.value)


def test_a_saved_activation_without_a_place_is_refused():
    with pytest.raises(UserError, match=r"^compute\.saved names logits: choose from query, "):
        ComputeConfig(saved=("gate", "logits"))


def test_a_product_is_kept_in_one_place_only():
    with pytest.raises(UserError, match=r"^compute\.offloaded names gate, as compute\.saved does"):
        ComputeConfig(saved=("gate", "up"), offloaded=("gate",))
