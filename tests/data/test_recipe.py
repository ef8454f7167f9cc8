import pytest

from gemma_train.data.recipe import (
    ImageEncoding,
    ImageTextSource,
    Recipe,
    TextSource,
    load_recipe,
)
from gemma_train.errors import UserError

SOURCE = {"name": "web", "files": ("a.txt",), "licence": "CC0-1.0"}
GOOD = """
from gemma_train.data.recipe import Recipe, TextSource
source = TextSource(name="web", files=("*.txt",), licence="CC0-1.0")
recipe = Recipe(name="small", folder="out", tokenizer="t.model", sources=(source,))
"""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "a source has an empty name"),
        ({"files": "*.txt"}, r"source 'web': files is '\*.txt': give a tuple"),
        ({"files": ()}, r"source 'web': files is \(\): give a tuple"),
        ({"licence": ""}, "source 'web': licence is empty"),
        ({"format": "csv"}, "format is 'csv': choose one of text, jsonl, parquet"),
        ({"held_out_fraction": 1.0}, "held_out_fraction is 1.0: must be from 0 to below 1"),
        ({"minimum_characters": 0}, "minimum_characters is 0: must be at least 1"),
        ({"maximum_bytes": 0}, "maximum_bytes is 0: must be above 0"),
    ],
)
def test_a_wrong_source_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        TextSource(**(SOURCE | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folder": ""}, "recipe 'small': folder is empty"),
        ({"sources": ()}, r"sources is \(\): give a tuple of TextSource"),
        ({"sources": (TextSource(**SOURCE),) * 2}, "two sources have the same name, among web"),
        ({"shard_tokens": 0}, "shard_tokens is 0: must be above 0"),
    ],
)
def test_a_wrong_recipe_is_named(wrong, message):
    right = {"name": "small", "folder": "out", "tokenizer": "t", "sources": (TextSource(**SOURCE),)}
    with pytest.raises(UserError, match=message):
        Recipe(**(right | wrong))


PHOTOS = {"name": "photos", "files": ("*.jpg",), "licence": "CC0-1.0"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "a source has an empty name"),
        ({"files": "*.jpg"}, "source 'photos': files is"),
        ({"licence": ""}, "source 'photos': licence is empty"),
        ({"format": "zip"}, "format is 'zip': choose one of files, webdataset, parquet, jsonl"),
        ({"held_out_fraction": -1}, "held_out_fraction is -1"),
        ({"maximum_documents": 0}, "maximum_documents is 0: must be above 0"),
        ({"caption_suffix": "txt"}, "caption_suffix is 'txt': begin it with a dot"),
    ],
)
def test_a_wrong_source_of_images_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        ImageTextSource(**(PHOTOS | wrong))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "source 'photos' has images: say with images=ImageEncoding"),
        ({"sources": (TextSource(**SOURCE),)}, "images is given, and no source is an ImageText"),
        (
            {"sources": (ImageTextSource(**PHOTOS, damaged="drop"),)},
            r"recipe.sources\[0\].damaged is 'drop': choose 'count' or 'refuse'",
        ),
        ({"images": ImageEncoding(encoder=3)}, "recipe.images.encoder is 3"),
    ],
)
def test_images_and_what_encodes_them_go_together(changed, message):
    right = {
        "name": "small",
        "folder": "out",
        "tokenizer": "t",
        "sources": (ImageTextSource(**PHOTOS), TextSource(**SOURCE)),
        "images": ImageEncoding(encoder="siglip"),
    }
    assert Recipe(**right).image_folder == "out/images"
    with pytest.raises(UserError, match=message):
        Recipe(**(right | changed))


def test_folders_of_images_have_names():
    for wrong in ({"encoder": ""}, {"encoder": "siglip", "folder": ""}):
        with pytest.raises(UserError, match=r"images\.\w+ is empty: name a folder"):
            ImageEncoding(**wrong)


def test_a_recipe_file_is_run_as_the_users_own_python(tmp_path):
    (tmp_path / "small.py").write_text(GOOD.replace("'small'", "__file__"))
    recipe = load_recipe(str(tmp_path / "small.py"))
    assert recipe.sources[0].files == ("*.txt",)
    assert recipe.tokenizer == "t.model"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "\nrecipe = (", r"small.py', line 6: '\(' was never closed"),
        (GOOD.replace("recipe =", "recipes ="), "does not end in `recipe = Recipe"),
        (GOOD + "\nrecipe = 3", "does not end in `recipe = Recipe"),
        ("import nowhere", "small.py', line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (GOOD.replace('"out"', '""'), "small.py', line 4: recipe 'small': folder is empty"),
        (GOOD.replace("licence=", "license="), "small.py', line 3: TypeError: .*'license'"),
    ],
)
def test_a_wrong_recipe_file_gives_one_line(content, message, tmp_path):
    (tmp_path / "small.py").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(str(tmp_path / "small.py"))
    assert "\n" not in str(error.value)


def test_a_missing_recipe_file_is_named():
    with pytest.raises(UserError, match=r"recipe 'none.py' does not exist"):
        load_recipe("none.py")
