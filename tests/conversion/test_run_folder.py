"""Run folders: made of imported weights, left by training, and read as the model they hold."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from gemma_train import storage
from gemma_train.checkpoints.seal import seal
from gemma_train.config import DataConfig, RunConfig, TokenSource, read_record, record
from gemma_train.conversion import run_folder
from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.load import load_model, open_weights
from gemma_train.conversion.names import PADDING
from gemma_train.conversion.tensors import BFLOAT16, Tensor, Weights
from gemma_train.errors import UserError
from gemma_train.model import GemmaConfig
from gemma_train.run_files import CHECKPOINTS, RECORD, TOKENIZER

# Of a damaged checkpoint orbax's event loop complains after its end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
SOURCE = str(FIXTURES / "gemma3_mqa")  # seven layers of a pattern of six


def bits(arrays: dict) -> dict:
    found = {name: np.asarray(array) for name, array in arrays.items()}
    return {n: (str(a.dtype), a.shape, a.tobytes()) for n, a in found.items()}


def read(weights: Weights) -> dict:
    return bits({name: tensor.read() for name, tensor in weights.tensors.items()})


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def made(request, tmp_path_factory, tokenizer_file) -> tuple[Weights, Path]:
    """(the weights, the run made of them)."""
    folder = tmp_path_factory.mktemp("made")
    source = replace(open_weights(SOURCE), tokenizer=str(tokenizer_file))
    source = source.cast(np.dtype(np.float32) if request.param == "float32" else BFLOAT16)
    convert_weights(source, str(folder / "run"), "run")
    return source, folder / "run"


def test_a_run_of_imported_weights_keeps_a_config_to_edit(made, tokenizer_file):
    source, folder = made
    config = read_record(str(folder))
    assert (config.model, config.initial_weights) == (source.config, SOURCE)
    assert (config.folder, config.data.tokenizer) == (str(folder), f"{folder}/{TOKENIZER}")
    assert config.data.sequence_length == source.config.context
    assert (folder / TOKENIZER).read_bytes() == tokenizer_file.read_bytes()


def test_it_is_opened_as_the_weights_that_it_was_made_of(made):
    source, folder = made
    found = open_weights(str(folder))
    assert (found.format, found.config, found.step) == ("run", source.config, 0)
    assert (found.dtype, found.tokenizer) == (source.dtype, f"{folder}/{TOKENIZER}")
    assert read(found) == read(source)


def test_it_loads_as_the_source_does_in_either_dtype(made):
    source, folder = made
    for dtype in ("float32", "bfloat16"):
        model = load_model(str(folder), dtype)
        if source.dtype == BFLOAT16 or dtype == "bfloat16":
            expected = load_model(SOURCE, "bfloat16").parameters()
            expected = {name: leaf.astype(dtype) for name, leaf in expected.items()}
        else:
            expected = load_model(SOURCE).parameters()
        assert bits(model.parameters()) == bits(expected)
        assert (model.config, model.compute.dtype) == (source.config, dtype)


def test_its_checkpoint_has_the_models_own_leaves_and_says_how_it_was_made(made):
    _, folder = made
    found = ocp.metadata(folder / CHECKPOINTS / "0")
    leaves = load_model(SOURCE).parameters()
    assert {name: leaf.shape for name, leaf in found.metadata.items()} == {
        f"model/{name}": leaf.shape for name, leaf in leaves.items()
    }
    assert found.custom_metadata == {"config": record(read_record(str(folder)))}


def test_rows_that_pad_a_table_are_kept_but_no_part_of_the_model(tmp_path):
    source = open_weights(str(FIXTURES / "gemma1_mqa"))
    extra = np.arange(3 * 40, dtype=np.float32).reshape(3, 40)
    padding = Tensor(extra.shape, extra.dtype, lambda: extra)
    source = replace(source, tensors={**source.tensors, PADDING: padding})
    convert_weights(source, str(tmp_path / "run"), "run")
    found = open_weights(str(tmp_path / "run"))
    assert read(found) == read(source)
    assert found.parameters.keys() == source.parameters.keys()
    model = load_model(str(tmp_path / "run"))
    assert bits(model.parameters()) == bits(load_model(str(FIXTURES / "gemma1_mqa")).parameters())


# What training leaves behind.
TRAINED = RunConfig(
    folder="nowhere",
    model=GemmaConfig(
        vocabulary=64,
        width=16,
        layers=5,
        query_heads=4,
        key_value_heads=2,
        head_dimension=8,
        hidden=32,
        context=16,
        pattern=("local", "global"),
        window=5,
        query_key_norm=True,
        post_norms=True,
    ),
    data=DataConfig(
        tokenizer="none", train=(TokenSource(path="none"),), sequence_length=16, batch_rows=8
    ),
    steps=40,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mesh_of) -> tuple[Path, dict]:
    """(a run, its parameters by step): two states, saved as those after steps 3 and 12."""
    from gemma_train.training.checkpoint import Checkpoints
    from gemma_train.training.claim import claim
    from gemma_train.training.position import Position
    from gemma_train.training.state import initial_state

    folder = tmp_path_factory.mktemp("trained") / "run"
    config = replace(TRAINED, folder=str(folder))
    claim(config, begun=False)
    parameters = {}
    with mesh_of(2, 2, 1), Checkpoints(config) as checkpoints:
        state = initial_state(config)
        for step in (3, 12):
            state = replace(
                state, model=jax.jit(partial(jax.tree.map, jax.numpy.tanh))(state.model)
            )
            checkpoints.save(step, state, Position(next_row=8 * step))
            parameters[step] = bits(state.model.parameters())
    return folder, parameters


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_the_newest_checkpoint_of_training_is_opened_and_loaded(trained):
    folder, parameters = trained
    found = open_weights(str(folder))
    assert (found.config, found.step, found.tokenizer) == (TRAINED.model, 12, None)
    assert bits(load_model(str(folder)).parameters()) == parameters[12] != parameters[3]
    model = load_model(str(folder))
    # Two repetitions of (local, global), and a local layer.
    for layer, leaf in (
        (1, model.pattern[1].attention.query[0]),
        (2, model.pattern[0].attention.query[1]),
        (4, model.remainder[0].attention.query[...]),
    ):
        np.testing.assert_array_equal(found.tensors[f"layers/{layer}/attention/query"].read(), leaf)


def test_it_is_loaded_onto_any_mesh(trained, mesh_of):
    folder, parameters = trained
    with mesh_of(1, 4, 2):
        model = load_model(str(folder))
    assert bits(model.parameters()) == parameters[12]
    assert len(model.embedding.table[...].sharding.device_set) == 8
    assert not model.embedding.table[...].sharding.is_fully_replicated


def test_it_is_converted_without_the_moments(trained, tmp_path):
    folder, parameters = trained
    convert_weights(open_weights(str(folder)), str(tmp_path / "again"), "run")
    assert bits(load_model(str(tmp_path / "again")).parameters()) == parameters[12]
    stored = ocp.metadata(tmp_path / "again" / CHECKPOINTS / "0").metadata
    assert all(name.startswith("model/") for name in stored)


def test_only_a_finished_checkpoint_counts_and_an_unfinished_one_is_left_alone(trained, copied):
    (copied / CHECKPOINTS / "12").rename(copied / CHECKPOINTS / "12.orbax-checkpoint-tmp")
    assert open_weights(str(copied)).step == 3
    assert bits(load_model(str(copied)).parameters()) == trained[1][3]
    assert (copied / CHECKPOINTS / "12.orbax-checkpoint-tmp").exists()


def test_a_run_without_a_finished_checkpoint_is_refused(copied):
    shutil.rmtree(copied / CHECKPOINTS / "3")
    (copied / CHECKPOINTS / "12").rename(copied / CHECKPOINTS / "12.orbax-checkpoint-tmp")
    for _ in range(2):
        with pytest.raises(UserError, match=f"^{copied}/{CHECKPOINTS} holds no finished checkpoin"):
            open_weights(str(copied))
        shutil.rmtree(copied / CHECKPOINTS, ignore_errors=True)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("layers=5", "layers=6", r"tensor 'layers/4/attention/query' \(and \d+ more\) are missing"),
        ("layers=5", "layers=4", r"tensor 'layers/4/.*' \(and \d+ more\) are unexpected"),
        (
            "hidden=32",
            "hidden=48",
            r".*/gate' has shape \(16, 32\), but this model's is \(16, 48\)",
        ),
        ("norm=True", "norm=False", r"tensor 'layers/0/attention/\w+_norm' .* are unexpected in"),
    ],
)
def test_a_record_that_was_edited_into_another_model_is_refused(copied, old, new, line):
    text = (copied / RECORD).read_text()
    assert old in text
    (copied / RECORD).write_text(text.replace(old, new))
    start = f"^checkpoint {copied}/{CHECKPOINTS}/12 does not hold the model that {RECORD} describes"
    with pytest.raises(UserError, match=f"{start}: {line}") as refusal:
        open_weights(str(copied))
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_something_else_is_refused(copied):
    ocp.save(copied / CHECKPOINTS / "20", {"step": np.ones(3)})
    seal(storage.path(str(copied / CHECKPOINTS / "20")))
    with pytest.raises(
        UserError, match="/20 does not hold the model.*'embedding/table' .* are missing"
    ):
        open_weights(str(copied))


@pytest.mark.parametrize("rest", [None, 100], ids=["removed", "truncated"])
@pytest.mark.parametrize(
    "which", ["state/_METADATA", "state/manifest.ocdbt", "state/d/*", "state/ocdbt.process_*/d/*"]
)
def test_a_damaged_checkpoint_is_passed_over_and_refused_where_it_is_asked_for(
    which, rest, trained, copied
):
    checkpoints = copied / CHECKPOINTS

    def damage(step: str) -> None:
        for damaged in (checkpoints / step).glob(which):
            content = damaged.read_bytes()
            damaged.unlink()
            if rest is not None:
                damaged.write_bytes(content[:rest])

    damage("12")
    assert open_weights(str(copied)).step == 3
    assert bits(load_model(str(copied)).parameters()) == trained[1][3]
    with pytest.raises(UserError, match="^checkpoint 12 is damaged") as asked:
        open_weights(str(copied), step=12)
    damage("3")
    with pytest.raises(UserError, match=f"^{checkpoints} holds no whole checkpoint") as none:
        open_weights(str(copied))
    assert not [one for one in (asked, none) if "\n" in str(one.value)]


def test_restoring_places_each_leaf_as_it_is_asked_for(trained):
    folder, parameters = trained
    device = jax.devices()[5]
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, BFLOAT16, sharding=jax.sharding.SingleDeviceSharding(device)
        ),
        load_model(str(folder)),
    )
    found = run_folder.restore(storage.path(str(folder)), 3, like).parameters()
    assert {leaf.device for leaf in found.values()} == {device}
    for name, (dtype, shape, content) in parameters[3].items():
        expected = np.frombuffer(content, dtype).reshape(shape).astype(BFLOAT16)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
