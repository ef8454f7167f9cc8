"""Handwritten digits with captions in words, to watch a small model learn to read images.

They come with scikit-learn: 1,797 pictures of 8 x 8 pixels (E. Alpaydin, C. Kaynak, Optical
Recognition of Handwritten Digits, UCI Machine Learning Repository). The encoder's weights are
random: what it makes of a picture is enough to tell digits apart, and needs no download.

`gemma-train embed`, then `gemma-train prepare`, with the tokenizer of data_recipes/quickstart.py.
"""

import io
from pathlib import Path

from gemma_train.data.recipe import ImageEncoding, ImageTextSource, RandomEncoder, Recipe
from gemma_train.storage import path, write_whole
from gemma_train.vision import VisionConfig

FOLDER = "data/quickstart_images"
PICTURES = f"{FOLDER}/digits.parquet"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_pictures() -> None:
    """The pictures as PNG, and what they show: a Parquet file as any other."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = []
    for picture in digits.images:  # from 0 to 16
        content = io.BytesIO()
        Image.fromarray((picture * (255 / 16)).astype("uint8")).save(content, "PNG")
        images.append(content.getvalue())
    captions = [f"This is a handwritten {WORDS[digit]}." for digit in digits.target]
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": images, "text": captions}), content)
    write_whole(path(PICTURES), content.getvalue())  # or not at all, if it is killed


if not Path(PICTURES).exists():
    write_pictures()

recipe = Recipe(
    name="quickstart images",
    folder=FOLDER,
    tokenizer="data/quickstart/tokenizer.model",
    sources=(
        ImageTextSource(
            name="digits",
            files=(PICTURES,),
            format="parquet",
            licence="CC-BY-4.0",
            held_out_fraction=0.1,
        ),
    ),
    images=ImageEncoding(
        encoder=RandomEncoder(
            vision=VisionConfig(
                side=16, patch=4, width=64, layers=2, heads=4, hidden=128, tokens=16
            ),
        ),
    ),
)
