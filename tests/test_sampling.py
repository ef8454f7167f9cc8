"""Sampling through the cache against whole recomputation; draws, stops, compilations, mistakes."""

import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from jax.sharding import reshard

from gemma_train import sampling
from gemma_train.axes import activation
from gemma_train.commands import sample as command
from gemma_train.commands.sample import SampleArguments, continued
from gemma_train.config import RunConfig, record
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.errors import UserError
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.sampling import SamplingConfig, sample, stream
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.position import Position
from gemma_train.training.state import initial_state

CONTEXT = 40
GEMMA1 = GemmaConfig(
    vocabulary=64,
    width=16,
    layers=2,
    query_heads=2,
    key_value_heads=1,
    head_dimension=8,
    hidden=32,
    context=CONTEXT,
)
GEMMA2 = replace(
    GEMMA1,
    layers=3,
    pattern=("local", "global"),
    window=4,
    post_norms=True,
    attention_soft_cap=50.0,
    final_soft_cap=30.0,
)
GEMMA3 = replace(
    GEMMA1,
    layers=4,
    query_heads=4,
    key_value_heads=2,
    pattern=("local", "global"),
    window=3,
    query_key_norm=True,
    post_norms=True,
    global_rope_base=1_000_000.0,
    global_rope_factor=8.0,
)
COMPUTE = ComputeConfig(dtype="float32", remat="none")
PROMPTS = [[2], [2, 9, 33, 8, 21], [2, *range(40, 50)]]
GREEDY = SamplingConfig(maximum_tokens=14, temperature=0.0)
WARM = SamplingConfig(maximum_tokens=14, temperature=2.0)


def lively(config: GemmaConfig) -> Gemma:
    """A model far from its initialisation, which would only repeat its last token."""

    @jax.jit
    def make() -> Gemma:
        model = Gemma(config, COMPUTE, nnx.Rngs(0))
        leaves, tree = jax.tree.flatten_with_path(model)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [
            x + (8.0 if "norm" in str(path) else 0.2) * jax.random.normal(key, x.shape)
            for key, (path, x) in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, moved)

    return make()


@jax.jit
def all_logits(model: Gemma, tokens_bt: jax.Array, segments_bt: jax.Array) -> jax.Array:
    positions_bt = jnp.arange(tokens_bt.shape[1]) * segments_bt
    inputs = (reshard(x, activation("bt")) for x in (tokens_bt, positions_bt, segments_bt))
    return model.unembed(model(*inputs)[0])


def greedy_without_cache(model: Gemma, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Each next token from the whole text so far, padded on the right, by reference attention."""
    plain = jax.eval_shape(
        lambda: Gemma(model.config, replace(COMPUTE, attention="reference"), nnx.Rngs(0))
    )
    plain = jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(model))
    rows = [list(prompt) for prompt in prompts]
    for _ in range(tokens):
        tokens_bt = np.asarray([ids + [0] * (CONTEXT - len(ids)) for ids in rows], np.int32)
        segments_bt = (np.arange(CONTEXT) < [[len(ids)] for ids in rows]).astype(np.int32)
        best_bt = np.asarray(all_logits(plain, tokens_bt, segments_bt)).argmax(axis=-1)
        for ids, best_t in zip(rows, best_bt, strict=True):
            ids.append(int(best_t[len(ids) - 1]))
    return [ids[-tokens:] for ids in rows]


@pytest.fixture(autouse=True)
def one_device(mesh_of):
    with mesh_of():
        yield


SMALL = replace(GEMMA2, layers=1, pattern=("local",))


@pytest.fixture(scope="module")
def model(mesh_of):
    with mesh_of():
        return lively(SMALL)


@pytest.mark.parametrize("config", [GEMMA1, GEMMA2, GEMMA3], ids=["Gemma 1", "Gemma 2", "Gemma 3"])
def test_greedy_with_the_cache_is_greedy_by_recomputing_everything(config):
    model = lively(config)
    found = sample(model, PROMPTS, config=GREEDY)
    assert found == greedy_without_cache(model, PROMPTS, 14)
    assert len({token for row in found for token in row}) > 9  # else the test would show little


def test_four_devices_write_what_one_writes(mesh_of, model):
    expected = sample(model, PROMPTS, config=WARM)
    with mesh_of(replica=2, data=2):
        assert sample(lively(SMALL), PROMPTS, config=WARM) == expected


def test_temperature_0_and_top_k_1_are_greedy_whatever_the_seed(model):
    expected = sample(model, PROMPTS, config=GREEDY)
    assert sample(model, PROMPTS, config=replace(GREEDY, seed=7)) == expected
    assert sample(model, PROMPTS, config=replace(WARM, top_k=1, seed=8)) == expected


def test_the_same_seed_draws_the_same_and_another_seed_does_not(model):
    expected = sample(model, PROMPTS, config=WARM)
    assert sample(model, PROMPTS, config=WARM) == expected
    assert sample(model, PROMPTS, config=replace(WARM, seed=1)) != expected


def test_a_row_does_not_depend_on_its_neighbours(model):
    first, second, _ = sample(model, PROMPTS, config=WARM)
    assert sample(model, [PROMPTS[0], PROMPTS[1], [2, 3]], config=WARM)[:2] == [first, second]


def test_equal_prompts_draw_apart(model):
    rows = sample(model, [PROMPTS[1]] * 3, config=WARM)
    assert rows[0] != rows[1] != rows[2]


def test_top_k_restricts_the_support_to_all_of_the_likeliest(model):
    hot = replace(WARM, temperature=1000.0)
    everything = {next(stream(model, PROMPTS, config=replace(hot, seed=s)))[2] for s in range(25)}
    three = {
        next(stream(model, PROMPTS, config=replace(hot, seed=s, top_k=3)))[2] for s in range(25)
    }
    greedy = next(stream(model, PROMPTS, config=GREEDY))[2]
    assert len(three) == 3
    assert greedy in three
    assert len(everything) > 10


def test_a_top_k_beyond_the_vocabulary_is_all_of_it(model):
    wide = sample(model, PROMPTS, config=replace(WARM, top_k=10**6))
    assert wide == sample(model, PROMPTS, config=replace(WARM, top_k=64))


def test_a_row_ends_at_a_stop_id_which_is_not_given(model):
    free = sample(model, PROMPTS, config=WARM)
    stop = free[1][5]
    cut = [row[: row.index(stop)] if stop in row else row for row in free]
    assert sample(model, PROMPTS, config=WARM, stop_ids=(stop, -1)) == cut


def test_the_stream_ends_when_every_row_has_stopped(model):
    steps = list(stream(model, PROMPTS, config=WARM, stop_ids=range(64)))
    assert steps == []
    steps = list(stream(model, PROMPTS, config=WARM))
    assert [set(step) for step in steps] == [{0, 1, 2}] * 14


def test_a_token_is_compiled_once_for_all_prompts_of_a_bucket(model):
    sample(model, PROMPTS, config=WARM)
    compiled = sampling._advance._cache_size()
    for seed, prompts in enumerate(([[2] * 4] * 3, [[2, 5], [3] * 7, [2, 4, 4]])):
        config = SamplingConfig(maximum_tokens=13 + seed, temperature=0.5 + seed, seed=seed)
        sample(model, prompts, config=config)
    assert sampling._advance._cache_size() == compiled


def test_the_last_token_may_fill_the_context(model):
    prompt = [2] + [7] * 25
    [row] = sample(model, [prompt], config=GREEDY)
    assert len(prompt) + len(row) == CONTEXT


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"maximum_tokens": 0}, "maximum_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_a_wrong_setting_is_named(wrong, line):
    with pytest.raises(UserError, match=line):
        SamplingConfig(**wrong)


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ([], "there are no prompts"),
        ([[2], []], "prompt 1 has no ids"),
        ([[2, 64]], r"prompt 0 has the ids \[64\]: the model's go from 0 to 63"),
        ([[2, -1]], r"prompt 0 has the ids \[-1\]"),
        ([[2], [2] * 27], "prompt 1 has 27 tokens and maximum_tokens is 14: .*context, 40"),
    ],
)
def test_wrong_prompts_are_named_before_the_first_step(model, prompts, line):
    with pytest.raises(UserError, match=line):
        stream(model, prompts, config=GREEDY)


def test_a_mesh_that_splits_positions_is_refused_with_one_that_would_do(mesh_of, model):
    with mesh_of(data=2, seq=4), pytest.raises(UserError, match=r"mesh\.data 8 and mesh\.seq 1"):
        stream(model, PROMPTS, config=GREEDY)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mesh_of):
    """A run of no steps, with a checkpoint, and its tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    texts = [(Path(sysconfig.get_path("stdlib")) / "json" / "decoder.py").read_text("utf-8")]
    path = epath.Path(folder / "small.model")
    train_tokenizer(texts, TokenizerConfig(path=str(path), vocabulary=520), path)
    config = RunConfig(
        folder=str(folder),
        model=replace(GEMMA1, vocabulary=520, context=64),
        data=DataConfig(tokenizer=str(path), train=(TokenSource(path="x"),), sequence_length=32),
        compute=COMPUTE,
        steps=5,
    )
    with mesh_of(), Checkpoints(config) as checkpoints:
        checkpoints.save(3, initial_state(config), Position())
    (folder / "config.py").write_text(record(config))
    return folder


def test_the_command_prints_and_saves_every_prompt_with_its_continuation(folder, capsys):
    prompts = ("def <start_of_turn>", "x = ")
    command.run(SampleArguments(model=str(folder), prompt=prompts, maximum_tokens=10, save=True))
    text = (folder / "sample.txt").read_text()
    out = capsys.readouterr().out
    assert out.startswith(f"{folder} after 3 steps\n\n{text}")
    assert out.endswith(f"wrote {folder / 'sample.txt'}\n")
    first, second = text.split("\n---\n")
    assert first.startswith(prompts[0])
    assert len(first) > len(prompts[0])
    assert second.startswith(prompts[1])


def test_the_command_begins_a_text_when_there_is_no_prompt(folder, capsys):
    (folder / "sample.txt").unlink(missing_ok=True)
    command.run(SampleArguments(model=str(folder), maximum_tokens=10))
    assert capsys.readouterr().out.count("\n") >= 3
    assert not (folder / "sample.txt").exists()


def test_the_command_leaves_the_save_of_a_running_training_alone(folder):
    half_saved = folder / "checkpoints" / "4.orbax-checkpoint-tmp"
    half_saved.mkdir()
    command.run(SampleArguments(model=str(folder), maximum_tokens=10))
    assert half_saved.exists()


def test_a_character_of_several_tokens_is_told_when_it_is_whole(folder):
    tokenizer = Tokenizer.load(str(folder / "small.model"))
    snowman = tokenizer.encode("\u2603")
    assert len(snowman) > 2
    steps = iter([{0: token, 1: token} for token in snowman])
    pieces = list(continued(tokenizer, ["a", "b"], [[2, 70], [2, 71]], steps))
    assert "".join(pieces) == "a\u2603\n---\nb\u2603\n"
    broken = iter([{0: snowman[0]}])
    assert "".join(continued(tokenizer, ["a"], [[2, 70]], broken)) == "a\ufffd\n"


def test_a_run_that_cannot_be_sampled_is_named_in_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        command.run(SampleArguments(model=str(tmp_path / "nowhere")))
    text = (folder / "config.py").read_text()
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        command.run(SampleArguments(model=str(tmp_path)))
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "config.py").write_text(text.replace("small.model", "gone.model"))
    with pytest.raises(UserError, match=r"tokenizer .*gone\.model' does not exist"):
        command.run(SampleArguments(model=str(tmp_path)))
