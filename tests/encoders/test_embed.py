"""Images to embeddings: each once, exactly what the encoder says, and wrong ones named."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from gemma_train import storage
from gemma_train.conversion.encoder import encoder_sha256, load_encoder, save_encoder
from gemma_train.data.images.decoding import ImageLimits, decoded, pixels, resized
from gemma_train.data.images.store import DTYPE, EmbeddingStore, finished_shards, image_key, verify
from gemma_train.data.images.views import PanAndScan, views
from gemma_train.data.recipe import ImageEncoding, ImageTextSource, RandomEncoder, Recipe
from gemma_train.encoders import embed as stage
from gemma_train.encoders.embed import Pace, embed
from gemma_train.encoders.encoder import head_of, recipe_encoder
from gemma_train.errors import UserError
from gemma_train.model.siglip import Siglip, encode
from gemma_train.vision import VisionConfig

SMALL = VisionConfig(side=8, patch=4, width=8, layers=1, heads=2, hidden=8, tokens=4)
PACE = Pace(threads=2, batch_images=8, shard_images=16)


@pytest.fixture(scope="module")
def encoder() -> Siglip:
    return Siglip(SMALL, nnx.Rngs(0))


@pytest.fixture(autouse=True)
def mesh(mesh_of):
    with mesh_of(1, 8, 1):
        yield


def picture(seed: int = 0, size: tuple[int, int] = (12, 10), format: str = "PNG", **options):
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).convert(options.pop("mode", "RGB")).save(buffer, format, **options)
    return buffer.getvalue()


def add(folder: Path, name: str, content: bytes) -> bytes:
    """Write an image and its caption."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.img").write_bytes(content)
    (folder / f"{name}.txt").write_text(f"picture {name}")
    return content


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of forty images."""
    for number in range(40):
        add(tmp_path / "photos", f"{number:03d}", picture(number))
    return tmp_path / "photos"


def recipe_of(photos: Path, **fields) -> Recipe:
    encoding = {name: fields.pop(name) for name in ("pan_and_scan",) if name in fields}
    source = ImageTextSource(name="photos", files=(f"{photos}/*.img",), licence="CC0-1.0", **fields)
    return Recipe(
        name="made",
        folder=str(photos.parent / "out"),
        tokenizer="none",
        sources=(source,),
        images=ImageEncoding(encoder=RandomEncoder(vision=SMALL), **encoding),
    )


def run(recipe: Recipe, encoder: Siglip, pace: Pace = PACE) -> list[str]:
    """Embed, and return what was said."""
    said = []
    embed(recipe, encoder, head_of(encoder, "enc"), pace, said.append)
    return said


def files(folder: str) -> dict[str, bytes]:
    found = (file for file in Path(folder).rglob("*") if file.is_file())
    return {file.name: file.read_bytes() for file in found}


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Counts how many images the encoder was given, blank ones aside."""
    counts = []

    def counting(encoder, given):
        counts.append(int(np.any(np.asarray(given) != 0, axis=(1, 2, 3)).sum()))
        return encode(encoder, given)

    monkeypatch.setattr(stage, "encode", counting)
    return counts


def test_an_embedding_is_exactly_what_the_encoder_says_rounded(photos, encoder):
    recipe = recipe_of(photos)
    run(recipe, encoder)
    store = EmbeddingStore(recipe.image_folder)
    contents = [picture(number) for number in range(40)]
    given = np.stack([pixels(resized(decoded(one, ImageLimits()), 8)) for one in contents])
    for first in range(0, 40, 8):
        expected = np.asarray(encode(encoder, given[first : first + 8])).astype(DTYPE)
        for content, one in zip(contents[first : first + 8], expected, strict=True):
            assert store.read(image_key(content)).tobytes() == one.tobytes()
    verify(recipe.image_folder)


def test_the_store_is_the_same_for_any_number_of_threads(photos, encoder):
    recipe, made = recipe_of(photos), []
    for threads in (1, 5):
        own = replace(recipe, folder=f"{recipe.folder}{threads}")
        run(own, encoder, replace(PACE, threads=threads))
        made.append(files(own.image_folder))
    assert made[0] == made[1]


def test_duplicates_are_encoded_once(photos, encoder, encoded):
    for number in range(5):
        add(photos, f"copy {number}", picture(7))
    said = run(recipe_of(photos), encoder)
    assert sum(encoded) == 40
    assert "45 images found, 40 different pictures in them, 0 are there; 40 to encode" in said[0]


def test_a_shard_that_was_removed_is_made_again_and_no_other(photos, encoder, encoded):
    recipe = recipe_of(photos)
    pace = replace(PACE, shard_images=8)
    run(recipe, encoder, pace)
    before, counted = files(recipe.image_folder), sum(encoded)
    for suffix in ("bin", "keys"):
        (Path(recipe.image_folder) / f"embeddings-00001.{suffix}").unlink()
    assert len(EmbeddingStore(recipe.image_folder)) == 32
    assert finished_shards(recipe.image_folder) == [0, 2, 3, 4]
    run(recipe, encoder, pace)
    assert sum(encoded) - counted == 8
    assert files(recipe.image_folder) == before


def test_two_at_once_do_not_write_to_one_store(photos, encoder):
    recipe = recipe_of(photos)
    run(recipe, encoder)
    with (
        storage.alone(storage.path(recipe.image_folder)),
        pytest.raises(UserError, match="another process writes to"),
    ):
        run(recipe, encoder)
    run(recipe, encoder)


def test_a_second_pass_does_nothing_and_images_that_are_added_are_added(photos, encoder, encoded):
    recipe = recipe_of(photos)
    run(recipe, encoder)
    before = files(recipe.image_folder)
    encoded.clear()
    assert "all of which are there" in run(recipe, encoder)[0]
    assert (encoded, files(recipe.image_folder)) == ([], before)
    for number in range(3):
        add(photos, f"0 new {number}", picture(100 + number))  # first by name
    assert "40 are there; 3 to encode" in run(recipe, encoder)[0]
    assert sum(encoded) == 3
    assert before.items() <= files(recipe.image_folder).items()
    store = EmbeddingStore(recipe.image_folder)
    assert all(image_key(picture(number)) in store for number in (0, 39, 100, 102))


def test_a_pass_that_ended_early_goes_on_to_the_same_bytes(photos, encoder, monkeypatch, encoded):
    recipe = recipe_of(photos)
    whole = replace(recipe, folder=f"{recipe.folder}_whole")
    run(whole, encoder)
    write, written = stage.write_shard, []

    def failing(*arguments):
        if len(written) == 1:
            raise OSError("killed")
        write(*arguments)
        written.append(arguments)

    monkeypatch.setattr(stage, "write_shard", failing)
    with pytest.raises(OSError, match="killed"):
        run(recipe, encoder)
    assert finished_shards(recipe.image_folder) == [0]
    monkeypatch.setattr(stage, "write_shard", write)
    encoded.clear()
    run(recipe, encoder)
    assert sum(encoded) == 24
    assert files(recipe.image_folder) == files(whole.image_folder)


def test_a_store_of_another_encoder_is_refused_with_both(photos, encoder):
    recipe = recipe_of(photos)
    run(recipe, encoder)
    other = Siglip(SMALL, nnx.Rngs(1))
    one, two = (head_of(each, "enc").encoder_sha256 for each in (encoder, other))
    with pytest.raises(UserError, match=f"with encoder_sha256 '{one}' .* not '{two}'"):
        run(recipe, other)


WRONG = {
    "unreadable": b"no image at all",
    "empty": b"",
    "truncated": picture(50)[:-200],
    "cut jpeg": picture(51, (64, 64), "JPEG")[:900],
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}
ODD = {
    "one pixel": picture(60, (1, 1)),
    "cmyk": picture(61, mode="CMYK", format="JPEG"),
    "grey": picture(62, mode="L"),
    "mislabelled": picture(63, format="WEBP"),
    "long": picture(64, (400, 2)),
}


def test_wrong_images_are_counted_and_named_and_odd_ones_are_taken(photos, encoder, capfd):
    for name, content in (WRONG | ODD).items():
        add(photos, name, content)
    sixteen = io.BytesIO()
    Image.fromarray(np.full((9, 9), 30_000, np.uint16)).save(sixteen, "PNG")
    add(photos, "sixteen bits", sixteen.getvalue())
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    add(photos, "animated", animated.getvalue())
    said = run(recipe_of(photos), encoder)
    assert f"source 'photos': {len(WRONG)} images not taken" in said[1]
    assert "cut jpeg.img file: it cannot be decoded" in "".join(said[2:])
    assert len(said) == 5
    store = EmbeddingStore(recipe_of(photos).image_folder)
    assert len(store) == 40 + len(ODD) + 2
    assert not any(image_key(content) in store for content in WRONG.values())
    again = run(recipe_of(photos), encoder)
    assert again[1:] == said[1:]
    assert len(EmbeddingStore(recipe_of(photos).image_folder)) == 40 + len(ODD) + 2
    assert capfd.readouterr() == ("", "")


def test_images_beyond_the_limits_are_named(photos, encoder):
    add(photos, "huge", picture(70, (300, 300)))
    add(photos, "small", picture(71, (1, 9)))
    said = run(
        recipe_of(photos, limits=ImageLimits(largest_pixels=10_000, smallest_side=2)), encoder
    )
    assert "2 images not taken" in said[1]
    assert "huge.img file: 300 x 300 pixels, at most 10,000 are taken" in said[2]


@pytest.mark.parametrize("content", [WRONG["unreadable"], WRONG["truncated"]])
def test_a_source_may_refuse_wrong_images(photos, encoder, content):
    add(photos, "020 bad", content)
    with pytest.raises(UserError, match=r"source 'photos': .*020 bad.img file: .*damaged='count'"):
        run(recipe_of(photos, damaged="refuse"), encoder)


def test_a_damaged_tiff_says_nothing_on_the_screen(photos, encoder, capfd):
    whole = picture(80, (64, 64), "TIFF", compression="tiff_lzw")
    random = np.random.default_rng(0)
    for number in range(20):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 6):
            damaged[place] = random.integers(256)
        add(photos, f"damaged {number}", bytes(damaged))
    run(recipe_of(photos), encoder)
    assert capfd.readouterr() == ("", "")


def test_crops_are_encoded_beside_the_whole(tmp_path, encoder, encoded):
    crops = PanAndScan(smallest_crop=8, most_crops=3)
    content = add(tmp_path / "photos", "long", picture(0, (40, 10)))
    recipe = recipe_of(tmp_path / "photos")
    run(recipe, encoder)
    run(recipe_of(tmp_path / "photos", pan_and_scan=crops), encoder)
    assert encoded == [1, 3]
    store, picture_ = EmbeddingStore(recipe.image_folder), decoded(content, ImageLimits())
    for key, box in views(content, ImageLimits(), crops):
        cropped = picture_.crop(box) if box else picture_
        given = pixels(resized(cropped, 8))[None]
        expected = np.asarray(encode(encoder, given)).astype(DTYPE)
        assert store.read(key).tobytes() == expected.tobytes()


def test_a_disk_without_room_is_refused_before_anything_is_written(photos, encoder, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda _: 100)
    recipe = recipe_of(photos)
    with pytest.raises(UserError, match=r"images.folder .* needs 2,560 bytes .* 100 free"):
        run(recipe, encoder)
    assert not Path(recipe.image_folder).exists()


def test_a_store_in_a_bucket_is_refused_at_once(photos, encoder):
    recipe = replace(recipe_of(photos), folder="gs://bucket/made")
    with pytest.raises(UserError, match="images.folder 'gs://bucket/made/images' must be local"):
        run(recipe, encoder)


def test_an_encoder_whose_numbers_are_none_is_refused(photos, encoder):
    damaged = jax.tree.map(lambda leaf: leaf * np.nan, encoder)
    with pytest.raises(UserError, match="numbers that are not finite for image"):
        run(recipe_of(photos), damaged)


def test_a_store_keeps_its_encoder_and_notices_another(photos, encoder):
    recipe = recipe_of(photos)
    drawn, head = recipe_encoder(recipe)
    assert head.encoder == "random weights of seed 0"
    run(recipe, drawn)
    kept = f"{recipe.image_folder}/encoder"
    assert encoder_sha256(load_encoder(kept)) == head.encoder_sha256
    named = replace(recipe, images=ImageEncoding(encoder=kept))
    again, same = recipe_encoder(named)
    assert (same.encoder_sha256, same.encoder) == (head.encoder_sha256, kept)
    run(named, again)
    shutil.rmtree(kept)
    run(recipe, drawn)  # it comes back
    shutil.rmtree(kept)
    save_encoder(jax.tree.map(lambda leaf: leaf + 1, drawn), kept)
    with pytest.raises(UserError, match=r"encoder' holds encoder .*: remove '.*/encoder' and run"):
        run(recipe, drawn)


def test_a_recipe_without_images_is_refused(photos):
    from gemma_train.data.recipe import TextSource

    text = TextSource(name="text", files=("a",), licence="CC0-1.0")
    recipe = Recipe(name="made", folder="out", tokenizer="none", sources=(text,))
    with pytest.raises(UserError, match="recipe 'made' has no images: add an ImageTextSource"):
        recipe_encoder(recipe)


def test_a_source_without_one_image_is_refused_with_its_first_trouble(photos, encoder):
    for file in photos.glob("*.txt"):
        file.unlink()
    with pytest.raises(UserError, match=r"source 'photos' gave no image; first trouble: .*000"):
        run(recipe_of(photos), encoder)
