"""Documents with images as token datasets: where each image stands, and which are left out."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_train.data import recipe_images
from gemma_train.data.images.decoding import ImageLimits
from gemma_train.data.images.pictures import kept_picture
from gemma_train.data.images.store import DTYPE, Head, image_key, write_head, write_shard
from gemma_train.data.images.views import PanAndScan, views
from gemma_train.data.prepare import HELD_OUT, TRAIN, prepare, prepared
from gemma_train.data.recipe import (
    ImageEncoding,
    ImageTextSource,
    RandomEncoder,
    Recipe,
    TextSource,
)
from gemma_train.data.shards import TokenDataset, verify
from gemma_train.errors import UserError
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.vision import VisionConfig

HEAD = Head(encoder_sha256="ab" * 32, encoder="enc", side=8, tokens=4, width=6)
VISION = VisionConfig(side=8, patch=4, width=6, layers=1, heads=1, hidden=4, tokens=4)
CROPS = PanAndScan(smallest_crop=8, most_crops=3)


def picture(seed: int = 0, size: tuple[int, int] = (9, 9)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path) -> Callable[..., None]:
    """Writes documents of texts and images as JSONL."""

    def make(*documents: list[str | bytes]) -> None:
        lines = []
        for number, document in enumerate(documents):
            content = []
            for place, part in enumerate(document):
                if isinstance(part, bytes):
                    (tmp_path / f"{number}-{place}.png").write_bytes(part)
                    content.append({"image": f"{number}-{place}.png"})
                else:
                    content.append({"text": part})
            lines.append(json.dumps({"content": content}))
        (tmp_path / "made.jsonl").write_text("\n".join(lines))

    return make


@pytest.fixture
def recipe(tmp_path, tokenizer) -> Recipe:
    source = ImageTextSource(
        name="pages",
        files=(f"{tmp_path}/made.jsonl",),
        licence="CC0-1.0",
        format="jsonl",
        held_out_fraction=0,
    )
    return Recipe(
        name="made",
        folder=f"{tmp_path}/out",
        tokenizer=tokenizer.name,
        sources=(source,),
        images=ImageEncoding(encoder=RandomEncoder(vision=VISION)),
    )


def embedded(recipe: Recipe, *contents: bytes, crops: PanAndScan | None = None) -> None:
    """A store with made-up embeddings of these images."""
    keys = [view.key for content in contents for view in views(content, ImageLimits(), crops)]
    write_head(recipe.image_folder, HEAD)
    if keys:
        made = np.ones((len(keys), HEAD.tokens, HEAD.width), DTYPE)
        write_shard(recipe.image_folder, 0, HEAD, keys, made)


def run(recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
    said = []
    prepare(recipe, tokenizer, threads=2, report=said.append)
    return said


def read(recipe: Recipe, part: str = TRAIN) -> tuple[list[int], list[tuple[int, bytes]]]:
    """All ids of a part, and where its images start."""
    folder = Path(recipe.folder) / part
    verify(str(folder))
    ids = np.fromfile(folder / "tokens-00000.bin", "<u4").tolist()
    images = np.fromfile(folder / "tokens-00000.images", [("start", "<i8"), ("image", "V32")])
    return ids, [(int(start), image.tobytes()) for start, image in images]


def test_an_image_stands_where_gemma_puts_it(recipe, tokenizer, write):
    write(["A cat:", picture(1), "It sleeps."], [picture(2), picture(1)], ["no image"])
    embedded(recipe, picture(1), picture(2))
    run(recipe, tokenizer)
    newline, start, end = map(tokenizer.id_of, ("\n", "<start_of_image>", "<end_of_image>"))
    image = [newline, newline, start, 0, 0, 0, 0, end, newline, newline]
    documents = [
        [*tokenizer.encode("A cat:"), *image, *tokenizer.encode("It sleeps.")],
        [*image, *image],
        tokenizer.encode("no image"),
    ]
    expected = [[tokenizer.bos, *ids, tokenizer.eos] for ids in documents]
    ids, images = read(recipe)
    assert ids == [one for document in expected for one in document]
    first = 1 + len(tokenizer.encode("A cat:")) + 3
    second = len(expected[0]) + 1 + 3
    assert images == [
        (first, image_key(picture(1))),
        (second, image_key(picture(2))),
        (second + 10, image_key(picture(1))),
    ]
    description = TokenDataset(f"{recipe.folder}/train").description
    assert (description.image.before, description.image.tokens, description.image.after) == (
        3,
        4,
        3,
    )
    (source,) = description.sources
    assert (source.documents, source.images, source.tokens) == (3, 3, len(ids))
    assert source.characters == len("A cat:It sleeps.no image")


def test_crops_stand_beside_the_whole_in_words(recipe, tokenizer, write):
    long = picture(3, (40, 10))
    encoding = replace(recipe.images, pan_and_scan=CROPS)
    recipe = replace(recipe, images=encoding)
    write(["See ", long, "."])
    embedded(recipe, long, crops=CROPS)
    run(recipe, tokenizer)
    ids, images = read(recipe)
    assert [image for _, image in images] == [v.key for v in views(long, ImageLimits(), CROPS)]
    told = tokenizer.decode([one for one in ids if one])
    ends = "\n\n<start_of_image><end_of_image>\n\n"
    assert told == (
        f"See Here is the original image {ends} and here are some crops to help you see better "
        f"{ends} {ends} {ends}."
    )


@pytest.mark.parametrize("wrong", [b"no image", picture(5)[:-150], b""])
def test_a_document_whose_image_is_none_is_left_out_and_counted(recipe, tokenizer, write, wrong):
    write(["one", picture(1)], ["two", picture(2), wrong], ["three"])
    embedded(recipe, picture(1), picture(2))
    said = run(recipe, tokenizer)
    assert "source 'pages': 1 documents left out for an image" in said
    assert "made.jsonl record 2: " in said[-1]
    assert len(read(recipe)[1]) == 1
    refusing = replace(
        recipe,
        folder=f"{recipe.folder}2",
        sources=(replace(recipe.sources[0], damaged="refuse"),),
        images=replace(recipe.images, folder=recipe.image_folder),
    )
    with pytest.raises(
        UserError, match=r"source 'pages': .*made.jsonl record 2: .*damaged='count'"
    ):
        run(refusing, tokenizer)


def test_limits_are_those_of_the_source_whatever_the_store_holds(recipe, tokenizer, write):
    write(["one", picture(1, (30, 30))], ["two", picture(2)])
    embedded(recipe, picture(1, (30, 30)), picture(2))
    source = replace(recipe.sources[0], limits=ImageLimits(largest_pixels=100))
    said = run(replace(recipe, sources=(source,)), tokenizer)
    assert "record 1: 30 x 30 pixels, at most 100 are taken" in said[-1]


def test_embed_comes_first(recipe, tokenizer, write):
    write(["one", picture(1)])
    with pytest.raises(UserError, match="holds no image embeddings .*: run gemma-train embed"):
        run(recipe, tokenizer)
    embedded(recipe, picture(2))
    with pytest.raises(
        UserError,
        match=r"made.jsonl record 1: an image has no embeddings in .*: run gemma-train em",
    ):
        run(recipe, tokenizer)
    assert prepared(recipe, tokenizer) == {}


def test_embeddings_of_other_sizes_are_refused(recipe, tokenizer, write):
    write(["one", picture(1)])
    embedded(recipe, picture(1))
    other = RandomEncoder(vision=replace(VISION, tokens=1))
    with pytest.raises(UserError, match=r"have tokens 4, .* images.encoder.vision.tokens is 1"):
        run(replace(recipe, images=ImageEncoding(encoder=other)), tokenizer)


def test_a_tokenizer_without_ends_of_images_is_refused(recipe, tokenizer, write):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    for piece in proto.pieces:
        if piece.piece == "<start_of_image>":
            piece.piece = "<unused99>"
    other = Tokenizer(proto.SerializeToString(), "gemma2.model")
    write(["one", picture(1)])
    embedded(recipe, picture(1))
    with pytest.raises(
        UserError, match=r"tokenizer 'gemma2.model' has no piece '<start_of_image>'"
    ):
        run(recipe, other)


def test_a_placeholder_in_a_text_never_becomes_an_image(recipe, tokenizer, write, tmp_path):
    write(["a <start_of_image> b", picture(1)], ["c", picture(1)])
    (tmp_path / "plain.txt").write_text("<start_of_image> in a manual <end_of_image>")
    text = TextSource(
        name="manual", files=(f"{tmp_path}/plain.txt",), licence="CC0-1.0", held_out_fraction=0
    )
    embedded(recipe, picture(1))
    said = run(replace(recipe, sources=(*recipe.sources, text)), tokenizer)
    assert "source 'pages': 1 unreadable records left out" in said
    assert "record 1: its text has '<start_of_image>'" in said[2]
    ids, images = read(recipe)
    assert ids.count(tokenizer.id_of("<start_of_image>")) == len(images) == 1
    assert ids.count(tokenizer.id_of("<end_of_image>")) == 1
    assert "<start_of_image> in a manual" in tokenizer.decode(ids)


def test_captions_of_an_image_stay_together(recipe, tokenizer, write):
    pictures = [picture(number) for number in range(60)]
    write(*([f"{words} {n}", one] for words in "ab" for n, one in enumerate(pictures)))
    embedded(recipe, *pictures)
    source = replace(recipe.sources[0], held_out_fraction=0.3)
    run(replace(recipe, sources=(source,)), tokenizer)
    (train, held_out) = ({image for _, image in read(recipe, p)[1]} for p in (TRAIN, HELD_OUT))
    assert not train & held_out
    assert len(train) + len(held_out) == 60
    assert 5 < len(held_out) < 35


def test_a_store_that_moves_is_no_other_recipe_and_another_source_is(recipe, tokenizer, write):
    write(["one", picture(1)])
    embedded(recipe, picture(1))
    run(recipe, tokenizer)
    moved = replace(recipe, images=replace(recipe.images, folder="elsewhere"))
    assert prepared(moved, tokenizer).keys() == {TRAIN}
    source = replace(recipe.sources[0], limits=ImageLimits(smallest_side=2))
    with pytest.raises(UserError, match=r"sources.0.limits.smallest_side 1 there, 2 here"):
        prepared(replace(recipe, sources=(source,)), tokenizer)


def test_a_tokenizer_learns_from_captions(recipe, tokenizer, write):
    from gemma_train.data.training_text import training_texts

    write(["A cat:", picture(1), "It sleeps."], ["no image"])
    assert list(training_texts(recipe.sources, 10_000)) == ["A cat:It sleeps.", "no image"]


def test_the_first_held_out_pictures_are_kept(recipe, tokenizer, write, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_images, "PICTURES", 3)
    pictures = [picture(seed, (9, 200)) for seed in range(12)]
    write(*[[content, "a picture"] for content in pictures])
    held_out = replace(recipe, sources=(replace(recipe.sources[0], held_out_fraction=0.5),))
    embedded(held_out, *pictures)
    prepare(held_out, tokenizer, threads=1, report=lambda _: None)
    folder = f"{tmp_path}/out/{HELD_OUT}"
    dataset = TokenDataset(folder)
    keys = [image for _, image in dataset.read(0, len(dataset))[2].tolist()]
    found = [kept_picture(folder, key).exists() for key in keys]
    assert found == [True] * 3 + [False] * (len(keys) - 3) and len(keys) > 3
    with Image.open(kept_picture(folder, keys[0])) as kept:
        assert kept.size == (4, 96)
