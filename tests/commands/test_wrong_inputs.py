"""Every mistake of a user: one line on standard error that says what would do, exit code 2."""

import errno
import shutil
from pathlib import Path

import pytest

from gemma_train.commands import command_line


@pytest.fixture
def config(tmp_path, write_config) -> str:
    return write_config(tmp_path / "run")


@pytest.fixture
def own_data(tmp_path, corpus) -> tuple[Path, tuple[str, ...]]:
    """A copy of the corpus to damage, and the flags that point the config at it."""
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    file = tmp_path / "damaged.py"
    file.write_text(
        (tmp_path / "run.py").read_text().replace(corpus, str(data))
        if (tmp_path / "run.py").exists()
        else ""
    )
    return data, ("train", str(file))


def test_an_unknown_verb(refused):
    assert "unknown verb 'trian'" in refused("trian")


def test_an_unknown_field_names_the_nearest_one(refused, config):
    told = refused("train", config, "--optimizer.peak-lrr", "3")
    assert "--optimizer.peak-lrr" in told
    assert "--optimizer.peak-lr " in told


def test_a_value_of_the_wrong_type_names_the_field(refused, config):
    told = refused("train", config, "--steps", "many")
    assert told.startswith("gemma-train: Error parsing --steps: ")
    assert "'many'" in told and "---" not in told


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_a_learning_rate_that_is_no_positive_number(refused, config, value):
    assert "optimizer.peak_lr is" in refused("train", config, "--optimizer.peak-lr", value)


def test_a_mesh_that_does_not_fit_the_devices(refused, config):
    told = refused("train", config, "--mesh.data", "4", "--mesh.seq", "1")
    assert "mesh replica 1 x data 4 x seq 1 = 4 devices" in told
    assert "has 8" in told


def test_a_mesh_that_does_not_divide_the_rows(refused, config):
    assert "data.batch_rows is 4" in refused("train", config, "--mesh.data", "8")


def test_a_folder_in_a_bucket_asks_for_what_reaches_it(refused, config, monkeypatch):
    from importlib.util import find_spec

    absent = ("gcsfs", "tensorflow")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else find_spec(name)
    )
    told = refused("train", config, "--folder", "gs://bucket/run")
    assert "'gs://bucket/run' is in a bucket, and gcsfs is not installed: pip install -e" in told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "Permission denied", "/runs"), "/runs: Permission denied"),
        (OSError(errno.ENOSPC, "No space left", "/runs"), "/runs: no space left on the device: "),
        (ValueError("orbax: No space left on device"), "no space left on the device: free some"),
        (OSError("Forbidden: gs://b/run\nno access"), "Forbidden: gs://b/run no access"),
        (
            type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("Invalid\nCredentials"),
            "the bucket cannot be reached: Invalid Credentials",
        ),
        (
            type("NoHost", (OSError,), {"__module__": "aiohttp.client"})("Cannot connect to host"),
            "the bucket cannot be reached: Cannot connect to host",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_system_or_a_bucket_refuses(capsys, config, monkeypatch, error, told):
    """A bucket that cannot be reached may be the next time: that has a code of its own."""

    def fail(_):
        raise error

    monkeypatch.setattr("gemma_train.config.load", fail)
    assert command_line.run(["train", config]) == (5 if told.startswith("the bucket") else 2)
    line = capsys.readouterr().err
    assert line.startswith(f"gemma-train: {told}") and line.count("\n") == 1


def test_any_other_failure_keeps_its_traceback(config, monkeypatch):
    def fail(_):
        raise ValueError("a flaw of the program")

    monkeypatch.setattr("gemma_train.config.load", fail)
    with pytest.raises(ValueError, match="a flaw of the program"):
        command_line.run(["train", config])


def test_a_sequence_longer_than_the_model(refused, config):
    told = refused("train", config, "--data.sequence-length", "128")
    assert "data.sequence_length is 128, longer than model.context, 64" in told


def test_a_window_longer_than_the_context(refused, config):
    told = refused("train", config, "--model.window", "65")
    assert "model.window is 65, longer than model.context, 64: local layers would see all" in told


def test_a_config_that_is_missing_broken_or_something_else(refused, tmp_path):
    assert "does not exist" in refused("train", str(tmp_path / "none.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("config = RunConfig(")
    assert "line 1" in refused("train", str(broken))
    broken.write_text("x = 1")
    assert "does not end in `config = RunConfig(...)`" in refused("train", str(broken))
    assert "needs a config" in refused("train")


def test_a_field_that_the_config_file_misspells(refused, config):
    text = Path(config).read_text()
    Path(config).write_text(text.replace("tensorboard=", "tensorbord="))
    assert "tensorbord" in refused("train", config)


def test_a_tokenizer_that_did_not_make_the_data(refused, config, own_data, one_device, tokenizer):
    data, words = own_data
    (data / "tokenizer.model").write_bytes(tokenizer)
    told = refused(*words)
    assert "tokenizer" in told


def test_a_run_over_data_of_another_tokenizer_than_it_was_begun_with(
    refused, copied, corpus, one_device, tokenizer
):
    """As if recipes had made tokenizer and data anew in their places: the run has its own copy."""
    folder, config = copied
    own = folder / "tokenizer.model"
    assert own.read_bytes() == Path(corpus, "tokenizer.model").read_bytes()
    own.write_bytes(tokenizer)
    for words, whose in ((("train", config), "begun"), (("evaluate", str(folder)), "made")):
        told = refused(*words)
        assert f"was {whose} with the tokenizer '{own}'" in told
        assert f"the data with '{corpus}/tokenizer.model'" in told


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> bytes:
    """Another tokenizer's bytes."""
    from gemma_train import storage
    from gemma_train.tokenizer.training import TokenizerConfig, train_tokenizer

    file = storage.path(str(tmp_path_factory.mktemp("other") / "other.model"))
    texts = [Path(__file__).read_text() * 3, "the quick brown fox " * 400]
    train_tokenizer(texts, TokenizerConfig(path=str(file), vocabulary=600), file)
    return file.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_truncated_shard_is_named(refused, config, own_data, one_device, damage):
    data, words = own_data
    shard = data / "train" / "tokens-00000.bin"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    assert "tokens-00000.bin" in refused(*words)


def test_a_shard_with_a_flipped_bit_is_named_and_its_rows_can_be_left_out(
    refused, config, own_data, one_device, caplog
):
    data, words = own_data
    shard = data / "train" / "tokens-00000.bin"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1  # of the first 16,384 tokens, where most rows are
    shard.write_bytes(content)
    told = refused(*words)
    assert f"{str(shard)!r} is damaged in bytes 0 to 65,536 (block 0 of" in told
    assert "run gemma-train prepare again; or train without its rows: data.damaged='skip'" in told
    assert command_line.run([*words, "--data.damaged", "skip"]) == 0
    assert caplog.text.count("left out, and counted as damaged_rows") == 1


def test_data_with_ids_beyond_the_models_vocabulary(refused, config, one_device):
    assert "model's vocabulary is 256" in refused("train", config, "--model.vocabulary", "256")


def test_an_empty_source(refused, tmp_path):
    recipe, empty = tmp_path / "recipe.py", tmp_path / "empty.txt"
    empty.write_text("")
    recipe.write_text(f"""
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.tokenizer.training import TokenizerConfig
recipe = Recipe(
    name="empty", folder={str(tmp_path / "out")!r},
    tokenizer=TokenizerConfig(path={str(tmp_path / "out/tokenizer.model")!r}, vocabulary=600),
    sources=(TextSource(name="nothing", files=({str(empty)!r},), licence="none"),),
)
""")
    assert "there is no text" in refused("prepare", str(recipe))


def test_a_run_folder_made_by_another_config(refused, finished_run, one_device):
    _, config = finished_run
    told = refused("train", config, "--optimizer.peak-lr", "0.5")
    assert "another config (optimizer.peak_lr was 0.001, is 0.5)" in told
    assert "--folder" in told


def test_no_space_left(config, tmp_path, capsys, monkeypatch, one_device):
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run"))

    monkeypatch.setattr("gemma_train.training.claim.storage.write_whole", full)
    assert command_line.run(["train", config]) == 2
    told = capsys.readouterr().err.strip()
    assert "no space left on the device" in told
    assert "\n" not in told


@pytest.mark.parametrize("verb", ["evaluate", "sample", "report"])
def test_a_folder_that_is_no_run(refused, tmp_path, verb):
    assert str(tmp_path) in refused(verb, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_record_of_a_run_is_never_executed(refused, tmp_path):
    for text in (
        "config = __import__('os').system('true')",
        "config = RunConfig(folder=open('/etc/hostname').read())",
        "import os",
        "config = (lambda: 1)()",
    ):
        (tmp_path / "config.py").write_text(text)
        assert "is not the record of a RunConfig" in refused("evaluate", str(tmp_path))


def test_a_definition_that_is_no_text_or_no_file(refused, tmp_path):
    garbage = tmp_path / "garbage.py"
    garbage.write_bytes(bytes(range(128, 256)))
    assert "is no text" in refused("train", str(garbage))
    assert "is no text" in refused("prepare", str(garbage))
    assert "configs" in refused("train", str(Path(__file__).parents[2] / "configs"))


def test_an_empty_folder_name(refused, config):
    assert "folder is empty" in refused("train", config, "--folder", "")


def test_a_folder_that_is_a_file_or_cannot_be_made(refused, config, tmp_path, one_device):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        told = refused("train", config, "--folder", str(folder))
        assert f"folder {str(folder)!r} cannot be written to" in told and "choose another" in told
    assert (tmp_path / "file").read_text() == "mine"


def test_many_processes_that_nobody_coordinates(config, gemma_train):
    done = gemma_train("train", config, "--mesh.runtime", "many_processes")
    assert done.returncode == 2
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["270m", "1b"])
def test_a_rope_factor_on_a_size_that_stays_at_32k(refused, name):
    file = Path(__file__).parents[2] / f"configs/gemma3_{name}.py"
    told = refused("train", file, "--model.global-rope-factor", "8")
    assert f"model.global_rope_factor is 8, but Gemma 3 {name.upper()} stays at 32,768 tok" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("factor=1.0", "factor is 1: it must be above 1, such as 8"),
        ("length=64", "length is 64: it must be longer than the run's model.context, 64"),
        ("batch_rows=0", "data.batch_rows is 0: must be at least 1"),
        ("tokens=10", "steps is 0: it must be at least 1"),
    ],
)
def test_a_stage_that_lengthens_nothing_or_trains_nothing(refused, config, tmp_path, change, told):
    words = {"tokens": "tokens=1e6", "peak_lr": "peak_lr=1e-3"} | {change.split("=")[0]: change}
    file = tmp_path / "long.py"
    file.write_text(
        "from gemma_train.config import load\n"
        "from gemma_train.stages.long_context import long_context\n"
        f"config = long_context(load({config!r}), {', '.join(words.values())})\n"
    )
    assert f"config {str(file)!r}, line 3: {told}" in refused("train", file)
