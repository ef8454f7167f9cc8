"""Convert, inspect, sample and train from a run's weights in every format, by the command line."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_train.commands import command_line
from gemma_train.conversion import load_model, open_weights
from gemma_train.errors import UserError
from gemma_train.metrics import recorder
from gemma_train.model.sizes import GEMMA3_4B
from tests.conversion.vision_folders import CONFIG as VISION_CONFIG
from tests.conversion.vision_folders import hugging_face_folder

FIXTURE = str(Path(__file__).parents[1] / "parity/fixtures/gemma1_mqa")


@pytest.fixture
def told(capsys):
    """Runs a command line to its end, and returns what it printed."""

    def run(*words: str) -> str:
        code = command_line.run(list(words))
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory, finished_run) -> dict[str, str]:
    """A finished run, and its weights in every format that can be read."""
    run = str(finished_run[0])
    folder = tmp_path_factory.mktemp("exported")
    made = {"run": run}
    for format in ("hf", "gemma"):
        made[format] = str(folder / format)
        assert command_line.run(["convert", run, made[format], "--format", format]) == 0
    return made


def test_a_trained_run_has_the_same_logits_in_every_format(exported):
    tokens = np.arange(40).reshape(2, 20)
    wanted = load_model(exported["run"]).logits(tokens)
    for format in ("hf", "gemma"):
        np.testing.assert_array_equal(load_model(exported[format]).logits(tokens), wanted)


@pytest.mark.parametrize("source", ["hf", "gemma"])
def test_weights_return_as_a_run_byte_for_byte(told, exported, source, tmp_path):
    made = str(tmp_path / "back")
    assert "float32" in told("convert", exported[source], made, "--format", "run")
    ours, theirs = open_weights(made).tensors, open_weights(exported["run"]).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.read().tobytes() == theirs[name].read().tobytes()


def test_every_format_samples_the_same_text(told, exported):
    texts = {
        told(
            "sample", folder, "--prompt", "def ", "--temperature", "0", "--maximum-tokens", "20"
        ).split("\n", 2)[2]
        for folder in exported.values()
    }
    assert len(texts) == 1
    assert min(map(len, texts)) > len("def ")


def test_inspect_prints_config_counts_dtype_and_bytes(told, exported, tmp_path):
    for format, folder in exported.items():
        page = told("inspect", folder)
        assert re.search(r"width +32\n", page)
        assert re.search(r"pattern +local global\n", page)
        counts = [
            int(c.replace(",", "")) for c in re.findall(r"(?:ing|body|total) +([\d,]+)", page)
        ]
        assert counts[0] == 600 * 32
        assert counts[0] + counts[1] == counts[2]
        assert f"{4 * counts[2]:,} bytes" in page
        assert ("after 12 steps" in page) == (format == "run")
    file = str(tmp_path / "model.gguf")
    # llama.cpp knows Gemma 3 with every sixth layer global; this run's every second is refused.
    assert command_line.run(["convert", exported["run"], file, "--format", "gguf"]) == 2


@pytest.fixture
def seeing(tmp_path, exported) -> str:
    """A model that sees images, of the layers that llama.cpp takes for granted."""
    size = {"layers": 6, "pattern": GEMMA3_4B.pattern, "vocabulary": 1024, "query_scale": None}
    size |= {"global_rope_factor": 8.0, "context": 4096}
    folder = hugging_face_folder(tmp_path / "seeing", config=replace(VISION_CONFIG, **size))
    tokenizer = Path(exported["run"]) / "tokenizer.model"
    if not tokenizer.exists():
        tokenizer = Path(exported["hf"]) / "tokenizer.model"
    shutil.copy(tokenizer, folder)
    return folder


@pytest.mark.filterwarnings("ignore:invalid value")  # random bytes are sometimes no numbers
def test_inspect_shows_the_factor_of_rope_in_every_format(told, seeing, tmp_path):
    for format in ("run", "hf", "gemma", "gguf"):
        made = str(tmp_path / ("x.gguf" if format == "gguf" else format))
        told("convert", seeing, made, "--format", format)
        shown = told("inspect", made)
        if format == "gguf":
            assert re.search(r"gemma3\.rope\.scaling\.type +linear\n", shown)
            assert re.search(r"gemma3\.rope\.scaling\.factor +8\.0\n", shown)
            assert re.search(r"gemma3\.context_length +4096\n", shown)
        else:
            assert re.search(r"global_rope_factor +8\.0\n", shown)
            assert re.search(r"context +4,096\n", shown)


@pytest.mark.filterwarnings("ignore:invalid value")  # random bytes are sometimes no numbers
def test_images_go_with_the_text_and_gguf_says_that_it_has_none(told, seeing, tmp_path):
    parts = r"parameters and ([\d,]+) of the vision encoder in float32$"
    for format in ("run", "hf", "gemma"):
        out = told("convert", seeing, str(tmp_path / format), "--format", format)
        count = re.search(parts, out, re.MULTILINE)
        assert count and "left out" not in out
        shown = told("inspect", str(tmp_path / format))
        assert f"{count[1]}, frozen, not in the total" in shown and "soft tokens" in shown
    out = told("convert", seeing, str(tmp_path / "x.gguf"), "--format", "gguf")
    assert re.search(r"left out \d+ tensors of the vision encoder .*text alone is in the", out)
    assert "vision" not in told("inspect", str(tmp_path / "x.gguf"))


def test_a_run_in_half_the_bytes(told, exported, tmp_path):
    made = tmp_path / "half"
    told("convert", exported["run"], str(made), "--format", "hf", "--dtype", "bfloat16")
    stored = load_file(made / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert "bfloat16" in told("inspect", str(made))


@pytest.mark.parametrize("source", ["run", "hf", "gemma"])
def test_training_begins_from_weights_of_any_format(
    gemma_train, write_config, finished_run, exported, source, tmp_path
):
    config = write_config(tmp_path / "more", steps=1)
    done = gemma_train("train", config, "--initial-weights", exported[source])
    assert done.returncode == 0, done.stderr
    first, *_ = recorder.read(tmp_path / "more")
    begun, *_, ended = (m for m in recorder.read(finished_run[0]) if "gradient_norm" in m)
    assert abs(first["loss"] - ended["loss"]) < 0.3 < begun["loss"] - first["loss"]


def test_a_converted_run_trains_once_its_config_names_data(
    gemma_train, corpus, finished_run, exported, tmp_path
):
    made = tmp_path / "begun"
    assert command_line.run(["convert", exported["hf"], str(made), "--format", "run"]) == 0
    config = made / "config.py"
    text = config.read_text().replace("data/train", f"{corpus}/train")
    config.write_text(text.replace("steps=1,", "steps=2,"))
    done = gemma_train("train", str(config))
    assert done.returncode == 0, done.stderr
    first, *_ = (m for m in recorder.read(made) if "gradient_norm" in m)
    begun, *_ = (m for m in recorder.read(finished_run[0]) if "gradient_norm" in m)
    assert first["loss"] < begun["loss"] - 0.3
    assert sorted(f.name for f in (made / "checkpoints").iterdir()) == ["0", "2"]


@pytest.mark.parametrize("source", ["run", "hf", "gemma"])
@pytest.mark.parametrize(
    "change",
    [{"window": 9}, {"global_rope_factor": 8.0}, {"final_soft_cap": 30.0}, {"query_scale": 3.0}],
)
def test_a_config_must_agree_with_the_weights(exported, source, change):
    config = open_weights(exported[source]).config
    assert open_weights(exported[source], replace(config, context=9)).config == config
    (name,) = change
    with pytest.raises(UserError, match=f"model.{name} was .*, is {change[name]}"):
        open_weights(exported[source], replace(config, **change))


def test_weights_of_another_model_leave_no_trace(gemma_train, write_config, exported, tmp_path):
    config = write_config(tmp_path / "other", steps=1)
    done = gemma_train("train", config, "--initial-weights", exported["hf"], "--model.window", "9")
    assert done.returncode == 2
    assert "model.window was 8, is 9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "other" / "config.py").exists()


def test_a_target_that_exists_is_left_alone(refused, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    line = refused("convert", FIXTURE, str(tmp_path / "there"), "--format", "hf")
    assert "there" in line and "exists" in line
    assert [f.name for f in (tmp_path / "there").iterdir()] == ["file"]


def test_the_folder_one_stands_in_is_no_target(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is the folder you are in" in refused("convert", FIXTURE, ".", "--format", "hf")


def test_a_run_that_was_moved_keeps_its_tokenizer(told, exported, tmp_path):
    told("convert", exported["run"], str(tmp_path / "made"), "--format", "run")
    (tmp_path / "made").rename(tmp_path / "moved")
    assert str(tmp_path / "moved/tokenizer.model") in told("inspect", str(tmp_path / "moved"))


def test_a_file_that_is_no_tokenizer_is_not_copied(refused, exported, tmp_path):
    """A record from elsewhere may name any file of this machine as its tokenizer."""
    run, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(exported["run"], run)
    (run / "tokenizer.model").unlink()  # its own, which would be taken
    secret.write_text("private")
    record = (run / "config.py").read_text()
    (run / "config.py").write_text(re.sub("tokenizer='[^']*'", f"tokenizer='{secret}'", record))
    for format in ("hf", "gemma", "run"):
        line = refused("convert", str(run), str(tmp_path / "made"), "--format", format)
        assert "is not a SentencePiece model" in line
        assert not (tmp_path / "made").exists()


def test_an_empty_folder_may_be_the_target(told, tmp_path):
    (tmp_path / "empty").mkdir()
    told("convert", FIXTURE, str(tmp_path / "empty"), "--format", "hf")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_conversion_that_fails_leaves_nothing(refused, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(FIXTURE, source)
    line = refused("convert", str(source), str(tmp_path / "x.gguf"), "--format", "gguf")
    assert "tokenizer" in line
    assert [f.name for f in tmp_path.iterdir()] == ["source"]


def test_a_disk_without_room_is_told_before_anything_is_written(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_train.storage.free_bytes", lambda folder: 1000)
    assert "needs 0.0 GB" in refused("convert", FIXTURE, str(tmp_path / "x"), "--format", "hf")
    assert not list(tmp_path.iterdir())


def test_a_mixture_of_dtypes_is_refused_until_one_is_chosen(refused, told, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(FIXTURE, source)
    stored = load_file(source / "model.safetensors")
    odd = "model.layers.1.mlp.up_proj.weight"
    stored[odd] = stored[odd].astype(np.float16)
    save_file(stored, source / "model.safetensors")
    for verb, *words in (("convert", str(tmp_path / "x"), "--format", "hf"), ("sample",)):
        line = refused(verb, str(source), *words)
        assert "layers/1/feed_forward/up is float16" in line
        assert "--dtype" in line
    told("convert", str(source), str(tmp_path / "y"), "--format", "hf", "--dtype", "float32")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nowhere", "x", "--format", "hf"), "'nowhere' does not exist"),
        ((f"{FIXTURE}/config.json", "x", "--format", "hf"), "is a file"),
        ((FIXTURE, "gs://bucket/x", "--format", "hf"), "local folders"),
        ((FIXTURE, "x", "--format", "onnx"), "onnx"),
        ((FIXTURE, "x"), "--format"),
        ((FIXTURE, "--format", "hf"), "--target"),
        ((FIXTURE, "x", "--format", "hf", "--tokenizer", "nowhere"), "'nowhere' does not exist"),
        ((FIXTURE, "x", "--format", "hf", "--config", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_a_wrong_word_is_told(refused, words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert part in refused("convert", *words)
    assert not list(tmp_path.iterdir())


def test_inspect_refuses_what_holds_no_model(refused, tmp_path):
    assert "holds no model" in refused("inspect", str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"no GGUF")
    assert "is not a whole GGUF file" in refused("inspect", str(tmp_path / "x.gguf"))
