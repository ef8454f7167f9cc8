"""A run over text and images, from pictures on disk to what it says of others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from gemma_train.commands import command_line
from gemma_train.commands import sample as command
from gemma_train.data.images.store import EmbeddingStore, image_key, read_head
from gemma_train.sampling import stream
from tests.commands.conftest import CONFIG

RECIPE = """
from gemma_train.data.recipe import ImageEncoding, ImageTextSource, RandomEncoder, Recipe
from gemma_train.vision import VisionConfig

VISION = VisionConfig(side=16, patch=8, width=16, layers=1, heads=2, hidden=32, tokens=4)
recipe = Recipe(
    name="squares",
    folder={folder!r},
    tokenizer={tokenizer!r},
    sources=(
        ImageTextSource(
            name="squares", files=({files!r},), licence="CC0-1.0", held_out_fraction=0.25
        ),
    ),
    images=ImageEncoding(encoder=RandomEncoder(vision=VISION, seed={seed}), folder={store!r}),
)
"""
SEEING = """
from dataclasses import replace

from gemma_train.config import ImageRows, TokenSource, VisionConfig, load

text = load({text!r})
config = replace(
    text,
    folder={folder!r},
    model=replace(
        text.model,
        vision=VisionConfig(side=16, patch=8, width=16, layers=1, heads=2, hidden=32, tokens=4),
    ),
    data=replace(
        text.data,
        train=(*text.data.train, TokenSource(path={data!r} + "/train")),
        held_out=(*text.data.held_out, {data!r} + "/held_out"),
        images=ImageRows(store={store!r}, per_row=3),
    ),
    evaluation=replace(text.evaluation, captions=30),
)
"""
STEPS = 4

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Small pictures of one colour each, and what it is called."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(40):
        colour = (20 + 5 * number, number, 0) if number % 2 else (number, 0, 20 + 5 * number)
        Image.new("RGB", (12, 9), colour).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("red" if number % 2 else "blue")
    return folder


@pytest.fixture(scope="module")
def seen(tmp_path_factory, corpus, squares, gemma_train):
    """(config file, folder of the run, of its images' data) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("seen")
    data, store = str(folder / "data"), str(folder / "store")
    files = {
        "recipe": RECIPE.format(
            folder=data,
            store=store,
            tokenizer=f"{corpus}/tokenizer.model",
            files=f"{squares}/*.png",
            seed=0,
        ),
        "text": CONFIG.format(folder=str(folder / "text"), data=corpus, steps=STEPS),
        "config": SEEING.format(
            text=str(folder / "text.py"), folder=str(folder / "run"), data=data, store=store
        ),
    }
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    for words in (
        ("embed", folder / "recipe.py"),
        ("prepare", folder / "recipe.py"),
        ("train", folder / "config.py"),
        ("report", folder / "run"),
    ):
        done = gemma_train(*map(str, words))
        assert done.returncode == 0, done.stderr
        if words[0] == "train":
            assert "held-out captions: " in done.stdout
    return folder


def test_a_finished_run_tells_its_captions_beside_chance_and_shows_them(seen):
    summary = json.loads((seen / "run/summary.json").read_text())
    captions = json.loads((seen / "run/captions.json").read_text())
    right = sum(one["right"] for one in captions) / len(captions)
    assert summary["captions_right"] == pytest.approx(right)
    words = [one["caption"] for one in captions]
    assert set(words) == {"red", "blue"}
    assert summary["captions_chance"] == max(map(words.count, words)) / len(words)
    pictures = sum(bool(one["picture"]) for one in captions)
    assert pictures == min(len(captions), 24)
    assert (seen / "run/report.html").read_text().count("<img ") == pictures


def test_sample_shows_a_picture_to_the_run(seen, squares, gemma_train):
    words = ("sample", str(seen / "run"), "--temperature", "0", "--maximum-tokens", "4")
    prompts = ("--prompt", "a", "--prompt", "the ")
    red, blue = squares / "39.png", squares / "38.png"
    told = [
        gemma_train(*words, *prompts, *(part for file in files for part in ("--image", str(file))))
        for files in ((red,), (red,), (blue, red))
    ]
    assert [done.returncode for done in told] == [0, 0, 0], told[0].stderr
    assert told[0].stdout == told[1].stdout
    assert "\n---\nthe " in told[2].stdout


def test_what_cannot_be_seen_is_refused_in_a_line(seen, squares, finished_run, refused, tmp_path):
    picture, run = str(squares / "39.png"), seen / "run"
    line = refused("sample", finished_run[0], "--image", picture)
    assert "sees no images: leave --image out" in line
    assert "does not exist" in refused("sample", run, "--image", "nowhere.png")
    (tmp_path / "no.png").write_bytes(Path(picture).read_bytes()[:50])
    assert "no.png' cannot be read: " in refused("sample", run, "--image", tmp_path / "no.png")


def test_without_its_encoder_a_run_sees_nothing_and_another_is_noticed(
    seen, squares, refused, tmp_path
):
    run, picture = tmp_path / "run", squares / "39.png"
    shutil.copytree(seen / "run", run)
    kept, away = seen / "store/encoder", tmp_path / "encoder"
    shutil.move(kept, away)
    try:
        assert "came without its vision encoder" in refused("sample", run, "--image", picture)
        shutil.copytree(away, run / "encoder")
        words = ["sample", str(run), "--image", str(picture), "--maximum-tokens", "4"]
        assert command_line.run(words) == 0
        weights = run / "encoder/model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert "was trained with images of encoder" in refused("sample", run, "--image", picture)
    finally:
        shutil.move(away, kept)


@pytest.fixture
def other_store(corpus, squares, tmp_path) -> Path:
    """The embeddings of another encoder of the same sizes."""
    recipe, store = tmp_path / "recipe.py", tmp_path / "store"
    recipe.write_text(
        RECIPE.format(
            folder=str(tmp_path / "data"),
            store=str(store),
            tokenizer=f"{corpus}/tokenizer.model",
            files=f"{squares}/*.png",
            seed=1,
        )
    )
    assert command_line.run(["embed", str(recipe)]) == 0
    assert read_head(str(store)).encoder == "random weights of seed 1"
    return store


def test_a_run_goes_on_with_the_encoder_that_it_began_with(seen, other_store, refused, tmp_path):
    config = tmp_path / "config.py"
    shutil.copytree(seen / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    config.write_text(
        SEEING.format(
            text=str(seen / "text.py"),
            folder=str(tmp_path / "run"),
            data=str(seen / "data"),
            store=str(other_store),
        )
    )
    line = refused("train", config)
    assert "was trained with images of encoder 'random weights of seed 0'" in line
    assert "those of encoder 'random weights of seed 1'" in line


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (", per_row=3", ", per_row=0", "data.images.per_row is 0: must be at least 1"),
        ("images=ImageRows(", "**dict(wrong=1), images=ImageRows(", "wrong"),
        ("width=16, layers=1", "width=32, layers=1", "model.vision.width is 32, but the embed"),
        ("captions=30", "captions=-1", "evaluation.captions is -1: it must be 0"),
        ("images=ImageRows(store={store!r}, per_row=3),", "", "has images: name the store of"),
    ],
)
def test_a_config_whose_images_do_not_fit_is_refused(seen, refused, tmp_path, old, new, told):
    template = SEEING.replace(old, new, 1)
    if "images=" not in template:
        template = template.replace("captions=30", "captions=0")
    assert template != SEEING
    (tmp_path / "config.py").write_text(
        template.format(
            text=str(seen / "text.py"),
            folder=str(tmp_path / "run"),
            data=str(seen / "data"),
            store=str(seen / "store"),
        )
    )
    assert told in refused("train", tmp_path / "config.py")


def test_weights_begin_with_the_images_of_their_own_encoder(seen, refused, tmp_path):
    begun = tmp_path / "begun"
    assert command_line.run(["convert", str(seen / "run"), str(begun), "--format", "hf"]) == 0
    words = ("--folder", tmp_path / "more", "--steps", "1", "--initial-weights", begun)
    assert command_line.run(["train", str(seen / "config.py"), *map(str, words)]) == 0

    weights = begun / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "vision_tower" in name and name.endswith("bias"))
    save_file({**tensors, name: tensors[name] + 1}, weights)
    shutil.rmtree(tmp_path / "more")
    line = refused("train", seen / "config.py", *words)
    assert f"initial_weights '{begun}' see through encoder " in line
    assert "data.images.store has embeddings of 'random weights of seed 0'" in line
    assert not (tmp_path / "more" / "encoder.json").exists()


def test_the_model_is_shown_what_the_store_holds_of_a_picture(seen, squares, monkeypatch):
    shown = []

    def recorded(model, prompts, **settings):
        shown.extend(settings["images"])
        return stream(model, prompts, **settings)

    monkeypatch.setattr(command, "stream", recorded)
    files = [squares / name for name in ("38.png", "39.png")]
    words = [word for file in files for word in ("--image", str(file))]
    assert command_line.run(["sample", str(seen / "run"), *words, "--maximum-tokens", "1"]) == 0
    store = EmbeddingStore(str(seen / "store"))
    expected = [store.read(image_key(file.read_bytes())) for file in files]
    assert (expected[0] != expected[1]).any()
    for (_, found), wanted in zip(shown[0], expected, strict=True):
        np.testing.assert_array_equal(found, np.float32(wanted))


def test_evaluate_takes_any_mesh(seen, gemma_train):
    done = gemma_train("evaluate", str(seen / "run"), "--mesh.seq", "2", devices=2)
    assert done.returncode == 0, done.stderr
    assert "held-out loss" in done.stdout


def test_a_store_of_another_encoder_is_noticed_by_every_command(
    seen, other_store, squares, refused, tmp_path
):
    """The run's store was made anew, with another encoder of the same sizes."""
    run, store = tmp_path / "run", other_store
    shutil.copytree(seen / "run", run)
    record = run / "config.py"
    record.write_text(record.read_text().replace(str(seen / "store"), str(store)))
    assert str(store) in record.read_text()
    told = "was trained with images of encoder 'random weights of seed 0'"
    assert told in refused("evaluate", run)
    assert told in refused("sample", run, "--image", squares / "39.png")
    assert told in refused("convert", run, tmp_path / "out", "--format", "hf")

    words = ("--folder", tmp_path / "more", "--data.images.store", store)
    line = refused("train", seen / "config.py", *words, "--initial-weights", seen / "run")
    assert f"initial_weights '{seen / 'run'}' see through encoder" in line
    (tmp_path / "student.py").write_text(
        f"""
from dataclasses import replace
from gemma_train.config import Distillation, Online, TopK, load

seeing = load({str(seen / "config.py")!r})
teacher = Online(weights={str(seen / "run")!r}, dtype="float32")
config = replace(seeing, loss=Distillation(teacher=teacher, sampler=TopK(candidates=8), chunk=64))
"""
    )
    line = refused("train", tmp_path / "student.py", *words)
    assert f"loss.teacher.weights '{seen / 'run'}' has seen images by encoder" in line
