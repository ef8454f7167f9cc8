"""Hugging Face folders: bytes there and back, three families of names, and wrong inputs."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_train.conversion import safetensors_files
from gemma_train.conversion.convert import convert_weights
from gemma_train.conversion.huggingface_config import write_config
from gemma_train.conversion.load import open_weights
from gemma_train.conversion.tensors import BFLOAT16
from gemma_train.errors import UserError
from gemma_train.model import GemmaConfig
from tests.conversion.test_names import PUBLISHED, miniature, of_generation, shapes_in

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
NAMES = ("gemma1_mqa", "gemma1_mha", "gemma2_gqa", "gemma3_long", "gemma3_mqa")
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT32 = np.dtype(np.float32)
Arrays = dict[str, np.ndarray]


def random_tensors(config: GemmaConfig, generation: int, dtype=FLOAT32, rows=None) -> Arrays:
    """Hugging Face's tensors of a model, filled with random bytes: NaN and infinities as well."""
    random = np.random.default_rng(generation)
    return {
        name: np.frombuffer(random.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        for name, shape in shapes_in(config, generation, rows).items()
    }


def write_folder(folder: Path, config: dict, *shards: Arrays) -> str:
    """A Hugging Face folder, written apart from the code: one file, or shards and an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / (file if len(shards) > 1 else ONE_FILE))
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(folder)


def stored(folder: str | Path) -> dict[str, tuple]:
    """(dtype, shape, bytes) of every tensor of a folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    arrays = [item for file in files for item in load_file(file).items()]
    assert len(arrays) == len(dict(arrays))
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays}


def through(source: str, target: Path, *formats: str) -> Path:
    """Convert to one format after another; the last folder."""
    for number, format in enumerate(formats):
        convert_weights(open_weights(source), str(target / str(number)), format)
        source = str(target / str(number))
    return Path(source)


def halves(arrays: Arrays) -> tuple[Arrays, Arrays]:
    names = sorted(arrays)
    return tuple({n: arrays[n] for n in names[start::2]} for start in (0, 1))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_size_comes_back_byte_for_byte(name, dtype, tmp_path):
    config = miniature(name)
    arrays = random_tensors(config, of_generation(name), dtype)
    json_config = write_config(config, str(dtype), rows=config.vocabulary)
    source = write_folder(tmp_path / "source", json_config, arrays)
    assert open_weights(source).config == config
    target = through(source, tmp_path, "hf")
    assert stored(target) == stored(source)
    assert open_weights(str(target)).config == config


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_come_back_byte_for_byte_through_a_run(name, tmp_path):
    target = through(str(FIXTURES / name), tmp_path, "run", "hf")
    assert stored(target) == stored(FIXTURES / name)
    assert open_weights(str(target)).config == open_weights(str(FIXTURES / name)).config


def test_padded_rows_leave_the_model_and_come_back_byte_for_byte_through_a_run(tmp_path):
    config = replace(miniature("GEMMA3_4B"), vocabulary=262_144, width=8, layers=7)
    arrays = random_tensors(config, 3, BFLOAT16, rows=262_208)
    json_config = write_config(config, "bfloat16", rows=262_208)
    source = write_folder(tmp_path / "source", json_config, arrays)
    weights = open_weights(source)
    assert weights.config.vocabulary == 262_144
    assert weights.parameters["embedding/table"].shape == (262_144, 8)
    target = through(source, tmp_path, "run", "hf")
    assert open_weights(str(tmp_path / "0")).config.vocabulary == 262_144
    assert stored(target) == stored(source)
    assert json.loads((target / "config.json").read_text())["vocab_size"] == 262_208


def test_shards_are_written_with_an_index_that_names_every_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "_SHARD_BYTES", 20_000)
    target = through(str(FIXTURES / "gemma2_gqa"), tmp_path, "hf")
    index = json.loads((target / INDEX).read_text())
    files = sorted(target.glob("*.safetensors"))
    expected = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 3 and [file.name for file in files] == expected
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(len(x[2]) for x in stored(target).values())
    assert stored(target) == stored(FIXTURES / "gemma2_gqa")
    assert stored(through(str(target), tmp_path / "again", "hf")) == stored(target)


def test_weights_may_be_read_by_whoever_may_read_the_config(tmp_path):
    target = through(str(FIXTURES / "gemma2_gqa"), tmp_path, "hf")
    assert len({file.stat().st_mode for file in target.iterdir()}) == 1


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a Gemma 3 in three shards, to be spoilt."""
    return Path(shutil.copytree(FIXTURES / "gemma3_long", tmp_path / "folder"))


@pytest.fixture
def single(tmp_path) -> Path:
    """A copy of a Gemma 2 in one file, to be spoilt."""
    return Path(shutil.copytree(FIXTURES / "gemma2_gqa", tmp_path / "single"))


def refusal_of(folder: Path) -> str:
    """The line that refuses a folder, without the name of the folder above it."""
    with pytest.raises(UserError) as refusal:
        open_weights(str(folder))
    assert "\n" not in str(refusal.value)
    return str(refusal.value).replace(f"{folder.parent}/", "")


def change_tensors(file: Path, change: Callable[[Arrays], object]) -> None:
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_heads_and_frequencies_beside_the_table_are_ignored(single, tmp_path):
    expected = stored(single)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}

    def add(arrays: dict[str, np.ndarray]) -> None:
        arrays.update(frequencies, **{"lm_head.weight": arrays["model.embed_tokens.weight"]})

    change_tensors(single / ONE_FILE, add)
    assert stored(through(str(single), tmp_path, "hf")) == expected


def test_a_head_of_its_own_is_refused(single):
    def add(arrays: dict[str, np.ndarray]) -> None:
        head = arrays["model.embed_tokens.weight"].copy()
        head[5, 7] += 1
        arrays["lm_head.weight"] = head

    change_tensors(single / ONE_FILE, add)
    assert "lm_head.weight is not the embedding" in refusal_of(single)


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_truncated_file_is_named(single, folder, kept):
    for file in (single / ONE_FILE, folder / "model-00002-of-00003.safetensors"):
        file.write_bytes(file.read_bytes()[:kept])
        line = f"{file.parent.name}/{file.name} is not a whole safetensors file ("
        assert refusal_of(file.parent).startswith(line)


def test_a_missing_shard_is_named(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert refusal_of(folder) == (
        f"folder/model-00002-of-00003.safetensors is missing, but named by {INDEX}: "
        "download the folder again"
    )


def test_a_shard_that_the_index_does_not_name_leaves_its_tensors_missing(folder):
    def forget(where: dict[str, str]):
        for name in [n for n, file in where.items() if "00003-of" in file]:
            del where[name]

    change_index(folder, forget)
    missing = len(load_file(folder / "model-00003-of-00003.safetensors"))
    assert f" (and {missing - 1} more) are missing" in refusal_of(folder)


def test_a_tensor_that_is_not_in_the_shard_the_index_names_is_named(folder):
    change_index(folder, lambda where: where.update(extra="model-00001-of-00003.safetensors"))
    assert refusal_of(folder) == (
        f"folder/model-00001-of-00003.safetensors: tensor 'extra' is missing, which {INDEX} names"
    )


@pytest.mark.parametrize("place", ["../single/model.safetensors", "/tmp/model.safetensors"])
def test_an_index_that_points_outside_its_folder_is_refused(folder, single, place):
    change_index(folder, lambda where: where.update({"model.norm.weight": place}))
    assert refusal_of(folder) == f"folder/{INDEX} names the file {place!r} outside its folder"


@pytest.mark.parametrize("place", ["..", "", 5])
def test_an_index_that_names_no_file_is_refused(folder, place):
    change_index(folder, lambda where: where.update({"model.norm.weight": place}))
    line = f" is missing, but named by {INDEX}: download the folder again"
    assert refusal_of(folder).endswith(line)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"{", "is not JSON ("), (b"\xff\xfe", "is no text of UTF-8"), (b"[1]", "holds no JSON obj")],
)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_junk_in_place_of_json_is_named(folder, file, content, why):
    (folder / file).write_bytes(content)
    assert refusal_of(folder).startswith(f"'folder/{file}' {why}")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_map_is_refused(folder, content):
    (folder / INDEX).write_text(content)
    assert refusal_of(folder) == f"folder/{INDEX} has no weight_map: download it again"


def test_another_architecture_is_refused(single):
    (single / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 40}))
    assert refusal_of(single).startswith("single/config.json: model_type is 'llama': gemma, gemma2")


def test_another_gemmas_config_does_not_fit_the_tensors(single, folder):
    shutil.copy(folder / "config.json", single)
    assert refusal_of(single).endswith("(and 59 more) are missing")


def test_missing_unexpected_and_wrong_tensors_are_named(single):
    file, name = single / ONE_FILE, "model.layers.1.mlp.down_proj.weight"
    whole = load_file(file)
    change_tensors(file, lambda arrays: arrays.update({name: whole[name].T.copy()}))
    assert refusal_of(single) == (
        f"single: tensor {name!r} has shape (24, 40), but this model's is (40, 24)"
    )
    change_tensors(file, lambda arrays: arrays.pop(name))
    assert refusal_of(single) == f"single: tensor {name!r} is missing"
    change_tensors(file, lambda arrays: arrays.update({name: whole[name], "extra": whole[name]}))
    assert refusal_of(single) == "single: tensor 'extra' is unexpected in this model"


def test_a_tensor_by_two_names_is_refused(single):
    twice = {"language_model.model.norm.weight": np.ones(40, np.float32)}
    change_tensors(single / ONE_FILE, lambda arrays: arrays.update(twice))
    assert "tensor 'model.norm.weight' is there by two names" in refusal_of(single)


def test_quantised_tensors_are_refused(single):
    eight_bits = {"model.norm.weight": np.ones(40, np.int8)}
    change_tensors(single / ONE_FILE, lambda arrays: arrays.update(eight_bits))
    assert refusal_of(single) == (
        f"single/{ONE_FILE}: tensor 'model.norm.weight' is I8: F32, BF16, F16 are known"
    )


def test_a_mixture_of_dtypes_is_refused_and_mended_by_a_cast(single, tmp_path):
    expected = stored(single)
    name = "model.norm.weight"
    value = load_file(single / ONE_FILE)[name].astype(BFLOAT16)
    change_tensors(single / ONE_FILE, lambda arrays: arrays.update({name: value}))
    weights, target = open_weights(str(single)), tmp_path / "target"
    with pytest.raises(UserError, match="dtypes: final_norm is bfloat16, embedding/table is float"):
        convert_weights(weights, str(target), "hf")
    assert not target.exists()
    convert_weights(weights.cast(FLOAT32), str(target), "hf")
    expected[name] = (FLOAT32, (40,), value.astype(np.float32).tobytes())
    assert stored(target) == expected


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "unpickled")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "weights.pt", ONE_FILE])
def test_a_pickle_is_refused_and_never_unpickled(single, tmp_path, file):
    witness = tmp_path / "witness"
    content = pickle.dumps(Malicious(witness))
    pickle.loads(content)
    witness.unlink()  # so it would be seen
    (single / ONE_FILE).unlink()
    (single / file).write_bytes(content)
    line = refusal_of(single)
    if file == ONE_FILE:
        assert line.startswith(f"single/{file} is not a whole safetensors file (")
    else:
        assert line.startswith(f"single has its weights in {file}, a pickle, which could run any ")
    assert " is a file: name a Hugging Face folder" in refusal_of(single / file)
    (single / "config.json").unlink()
    assert "holds no model" in refusal_of(single)
    shutil.copytree(FIXTURES / "gemma2_gqa", single, dirs_exist_ok=True)
    open_weights(str(single))  # the safetensors beside it
    assert not witness.exists()


def test_folders_without_weights_or_without_anything_are_refused(single, tmp_path):
    (single / ONE_FILE).rename(single / "consolidated.safetensors")
    assert refusal_of(single) == f"single holds neither {ONE_FILE} nor {INDEX}"
    (tmp_path / "empty").mkdir()
    assert refusal_of(tmp_path / "empty").startswith("'empty' holds no model: neither config.json")
    assert refusal_of(tmp_path / "none") == "model folder 'none' does not exist"
