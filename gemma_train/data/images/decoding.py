"""An image's bytes as the pixels that the vision encoder takes: decoded by Pillow, within limits.

Files come from anywhere: only formats that Pillow decodes by itself are opened, whatever they are
called, their size is known before any pixel is, and a file that ends early is no image. Gemma
resizes to a square without keeping the aspect, bilinear (report 2.1; transformers,
models/gemma3/image_processing_gemma3.py).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from gemma_train.errors import require
from gemma_train.silence import silence_libtiff

# Of raster files alone: no format that runs another program or holds one (EPS, PDF, SVG).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
WIDE = ("I;16", "I;16B", "I;16L", "I")  # Pillow's modes of 16 bits a level; I of a TIFF has 32
MOST_PIXELS = 178_956_970  # Pillow's own guard against decompression bombs
WHITE = (255, 255, 255)


class BadImage(Exception):
    """Why these bytes are no image that is taken, in words."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is taken for an image."""

    largest_pixels: int = 100_000_000  # height x width; more are a decompression bomb
    largest_bytes: int = 100_000_000  # of the file
    smallest_side: int = 1  # pixels; smaller ones carry nothing
    animated: bool = True  # takes the first picture; False refuses them

    def __post_init__(self) -> None:
        for name in ("largest_pixels", "largest_bytes", "smallest_side"):
            value = getattr(self, name)
            require(value >= 1, f"limits.{name} is {value}: it must be at least 1")
        require(
            self.largest_pixels <= MOST_PIXELS,
            f"limits.largest_pixels is {self.largest_pixels:,}: Pillow decodes {MOST_PIXELS:,} at "
            "most",
        )


def opened(content: bytes, limits: ImageLimits) -> Image.Image:
    """What the head of a file says: its size, no pixel read yet. Raises `BadImage`."""
    _quiet()
    check_size(len(content), limits)
    with _in_words():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check(image, limits)
        return image


def decoded(content: bytes, limits: ImageLimits) -> Image.Image:
    """The picture in these bytes, RGB, at its own size. Raises `BadImage`.

    Transparent parts are shown on white; 16 bits a colour become 8; of an animation the first
    picture is taken. Floats and levels of 32 bits are none: nobody knows how bright they are. What
    the file says of orientation and colour profile is left alone, as Gemma's own processors leave
    it.
    """
    image = opened(content, limits)
    with _in_words():
        image.load()
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("levels of 32 bits or floats: 8 and 16 bits are taken")
    return _rgb(image)


def check_size(size: int, limits: ImageLimits) -> None:
    """Raise `BadImage` where a file has too many bytes to be read at all."""
    if size > limits.largest_bytes:
        raise BadImage(f"{size:,} bytes, at most {limits.largest_bytes:,} are taken")


@cache
def _quiet() -> None:
    """For good, and for all threads: odd metadata is told by nobody, and sizes are looked at."""
    silence_libtiff()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _in_words() -> Iterator[None]:
    """Let whatever a decoder raises be a `BadImage`."""
    try:
        yield
    except UnidentifiedImageError:
        raise BadImage(f"not one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise BadImage(str(error)) from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError) as error:
        raise BadImage(f"it cannot be decoded: {error}") from None


def _check(image: Image.Image, limits: ImageLimits) -> None:
    """Raise `BadImage` for a picture beyond the limits: known from the file's head alone."""
    width, height = image.size
    if width * height > limits.largest_pixels:
        raise BadImage(
            f"{width:,} x {height:,} pixels, at most {limits.largest_pixels:,} are taken"
        )
    if min(width, height) < limits.smallest_side:
        raise BadImage(
            f"{width} x {height} pixels, sides of at least {limits.smallest_side} are taken"
        )
    if not limits.animated and getattr(image, "n_frames", 1) > 1:
        raise BadImage("it is animated, and limits.animated is False")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in WIDE:
        levels = np.clip(np.asarray(image, np.int64), 0, 65535) // 256
        return Image.fromarray(np.uint8(levels)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        on_white = Image.new("RGBA", picture.size, (*WHITE, 255))
        return Image.alpha_composite(on_white, picture).convert("RGB")
    return image.convert("RGB")


def resized(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [side, side, 3] of an RGB picture, without keeping its aspect."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def pixels(bytes_: np.ndarray) -> np.ndarray:
    """float32 of the same shape, from -1 to 1: what the encoder takes."""
    return bytes_.astype(np.float32) / 127.5 - 1.0
