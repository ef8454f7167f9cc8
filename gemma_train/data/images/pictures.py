"""Small pictures of the first held-out images, kept beside their dataset for people to look at."""

import io

from etils import epath
from PIL import Image

from gemma_train import storage

PICTURES = 24  # of a dataset
_SIDE = 96  # pixels at most


def kept_picture(folder: str, image: bytes) -> epath.Path:
    """Where a dataset keeps the picture of an image, by its key, or would."""
    return storage.path(folder) / "pictures" / f"{image.hex()}.png"


def keep_picture(folder: str, image: bytes, picture: Image.Image) -> None:
    """Write it as PNG, made smaller where it is large."""
    small, content = picture.copy(), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(content, "PNG")
    file = kept_picture(folder, image)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_whole(file, content.getvalue())
