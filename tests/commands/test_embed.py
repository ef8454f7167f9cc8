"""`gemma-train embed`, and prepare behind it: in processes of their own, also killed ones."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from gemma_train.data.images.store import EmbeddingStore, finished_shards
from tests.commands.conftest import command, environment
from tests.data.test_image_sources import picture

RECIPE = """
from gemma_train.data.recipe import ImageEncoding, ImageTextSource, RandomEncoder, Recipe
from gemma_train.tokenizer.training import TokenizerConfig
from gemma_train.vision import VisionConfig

ENCODER = RandomEncoder(
    vision=VisionConfig(side=16, patch=4, width=16, layers=2, heads=2, hidden=32, tokens=4)
)
recipe = Recipe(
    name="made",
    folder={folder!r},
    tokenizer=TokenizerConfig(path={folder!r} + "/tokenizer.model", vocabulary=520),
    sources=(
        ImageTextSource(
            name="photos", files=({file!r},), format="parquet", licence="CC0-1.0",
            held_out_fraction=0.2,
        ),
    ),
    images=ImageEncoding(encoder=ENCODER),
)
"""
IMAGES, SHARD = 320, ("--shard-images", "8", "--batch-images", "4")
DAMAGED = 11  # the number of one that is no image


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """A Parquet file of images and captions."""
    words = random.Random(0)
    images = [picture(number, (40, 30)) for number in range(IMAGES)]
    images[DAMAGED] = b"no image"
    texts = ["".join(words.choices("abcdefghij ", k=80)) for _ in images]
    file = tmp_path_factory.mktemp("photos") / "photos.parquet"
    parquet.write_table(pyarrow.table({"image": images, "text": texts}), file)
    return str(file)


@pytest.fixture
def write_recipe(tmp_path, photos):
    def write(name: str) -> tuple[str, Path]:
        file = tmp_path / f"{name}.py"
        file.write_text(RECIPE.format(folder=str(tmp_path / name), file=photos))
        return str(file), tmp_path / name

    return write


def stored(folder: Path) -> dict[str, bytes]:
    """The files of a store, but for the parts that a kill left."""
    files = [file for file in (folder / "images").rglob("*") if file.is_file()]
    return {file.name: file.read_bytes() for file in files if not file.name.startswith(".")}


def test_a_pass_that_is_killed_again_and_again_makes_the_same_files(write_recipe, gemma_train):
    whole, whole_folder = write_recipe("whole")
    done = gemma_train("embed", whole, *SHARD, "--verify")
    assert done.returncode == 0, done.stderr
    assert f"{IMAGES:,} images found, {IMAGES - 1:,} different pictures" in done.stdout
    assert "source 'photos': 1 images not taken" in done.stdout
    assert f"record {DAMAGED + 1}: not one of JPEG" in done.stdout
    assert "checksums: all equal" in done.stdout

    recipe, folder = write_recipe("killed")
    moments, store, kept = random.Random(0), folder / "images", 0
    for _ in range(3):
        process = subprocess.Popen(
            command("embed", recipe, *SHARD), env=environment(), stdout=subprocess.DEVNULL
        )
        due = kept + moments.randint(1, 9)
        while process.poll() is None and len(finished_shards(str(store))) < due:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(finished_shards(str(store))) >= kept
        kept = len(finished_shards(str(store)))
        before = stored(folder)
        assert len(EmbeddingStore(str(store))) >= 8 * kept - 8
    assert 3 <= kept < IMAGES // 8
    done = gemma_train("embed", recipe, *SHARD, "--verify")
    assert done.returncode == 0, done.stderr
    keys = {name for name in before if name.endswith(".keys")}
    assert all(stored(folder)[name] == before[name] for name in keys)
    made, expected = stored(folder), stored(whole_folder)
    for head in (made, expected):
        head["store.json"] = json.loads(head["store.json"])["encoder_sha256"]
    assert made == expected

    done = gemma_train("prepare", recipe, "--verify")
    assert done.returncode == 0, done.stderr
    assert "source 'photos': 1 documents left out for an image" in done.stdout
    assert f"record {DAMAGED + 1}: not one of JPEG" in done.stdout
    counts = [
        len(np.fromfile(folder / part / "tokens-00000.images", "V40"))
        for part in ("train", "held_out")
    ]
    assert sum(counts) == IMAGES - 1
    assert min(counts) > 20


def test_mistakes_are_one_line(write_recipe, tmp_path, refused):
    recipe, _ = write_recipe("made")
    told = refused("prepare", recipe)
    assert "holds no image embeddings (no store.json): run gemma-train embed" in told
    text = Path(recipe).read_text()
    for old, new, told in (
        ("encoder=ENCODER", "encoder='nowhere'", "encoder folder 'nowhere' does not exist"),
        ("photos.parquet'", "none.parquet'", "no file matches"),
    ):
        (tmp_path / "wrong.py").write_text(text.replace(old, new))
        assert told in refused("embed", str(tmp_path / "wrong.py"))
    told = refused("embed", recipe, "--shard-images", "0")
    assert "shard_images is 0: must be at least 1" in told
