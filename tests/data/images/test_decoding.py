"""Images from anywhere: what is decoded, to which pixels, and what is refused in words."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gemma_train.data.images.decoding import BadImage, ImageLimits, decoded, pixels, resized
from gemma_train.errors import UserError

LIMITS = ImageLimits()
pytestmark = [  # pytest brings back what the program has silenced
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture with a red upper half and a blue lower one."""
    levels = np.zeros((size[1], size[0], 3), np.uint8)
    levels[: size[1] // 2, :, 0], levels[size[1] // 2 :, :, 2] = 255, 255
    return Image.fromarray(levels).convert(mode)


def file(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def colours(content: bytes, limits: ImageLimits = LIMITS) -> tuple[np.ndarray, np.ndarray]:
    levels = resized(decoded(content, limits), 8).astype(int)
    return levels[1, 4], levels[6, 4]


@pytest.mark.parametrize(
    ("format", "mode", "most"),
    [
        ("PNG", "RGB", 0),
        ("PNG", "RGBA", 0),
        ("PNG", "P", 0),
        ("GIF", "P", 0),
        ("BMP", "RGB", 0),
        ("PPM", "RGB", 0),
        ("TIFF", "RGB", 0),
        ("TIFF", "CMYK", 0),
        ("JPEG", "RGB", 8),
        ("JPEG", "CMYK", 8),
        ("WEBP", "RGB", 20),
    ],
)
def test_every_kind_of_file_gives_its_colours(format, mode, most):
    red, blue = colours(file(picture(mode), format))
    assert np.abs(red - [255, 0, 0]).max() <= most
    assert np.abs(blue - [0, 0, 255]).max() <= most


def test_sixteen_bits_become_eight():
    levels = np.full((6, 6), 128 * 256, np.uint16)
    content = file(Image.fromarray(levels), "PNG")
    assert (np.asarray(decoded(content, LIMITS)) == 128).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_levels_whose_white_nobody_knows_are_refused(dtype):
    content = file(Image.fromarray(np.ones((6, 6), dtype)), "TIFF")
    with pytest.raises(BadImage, match="levels of 32 bits or floats"):
        decoded(content, LIMITS)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_is_grey(mode):
    levels = np.asarray(
        decoded(file(Image.new(mode, (5, 5), 255 if mode != "LA" else (255, 255)), "PNG"), LIMITS)
    )
    assert levels.shape == (5, 5, 3)
    assert (levels == 255).all()


def test_what_is_transparent_is_white():
    content = file(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")
    assert (np.asarray(decoded(content, LIMITS)) == 255).all()


def test_of_an_animation_the_first_picture_is_taken_or_none():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colours(content)[0].tolist() == [255, 0, 0]
    with pytest.raises(BadImage, match=r"animated, and limits\.animated is False"):
        decoded(content, ImageLimits(animated=False))


def test_one_pixel_is_an_image_unless_limits_say_not():
    content = file(Image.new("RGB", (1, 1), "red"), "PNG")
    assert colours(content)[0].tolist() == [255, 0, 0]
    with pytest.raises(BadImage, match="1 x 1 pixels, sides of at least 2"):
        decoded(content, ImageLimits(smallest_side=2))


def test_names_do_not_matter_and_what_is_no_image_is_refused():
    for content in (b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 64, b"hello" * 99):
        with pytest.raises(BadImage, match="not one of JPEG, PNG"):
            decoded(content, LIMITS)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_file_that_ends_early_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = file(Image.fromarray(noise), format)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(BadImage):
            decoded(content[: int(len(content) * part)], LIMITS)


def test_no_damage_is_more_than_a_bad_image():
    """Bytes flipped at random: an image or a `BadImage`, and no other error."""
    random = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        whole = file(picture(), format)
        for _ in range(40):
            damaged = bytearray(whole)
            for place in random.integers(0, len(whole), 4):
                damaged[place] = random.integers(256)
            try:
                assert decoded(bytes(damaged), LIMITS).mode == "RGB"
            except BadImage as error:
                assert str(error)


def bomb(side: int) -> bytes:
    """A PNG that claims a huge picture and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    with pytest.raises(BadImage, match="decompression bomb"):
        decoded(bomb(60_000), LIMITS)
    with pytest.raises(BadImage, match="12,000 x 12,000 pixels, at most 100,000,000"):
        decoded(bomb(12_000), LIMITS)
    with pytest.raises(BadImage, match="bytes, at most 10 are taken"):
        decoded(file(picture(), "PNG"), ImageLimits(largest_bytes=10))


def test_pixels_go_from_minus_one_to_one():
    found = pixels(np.uint8([0, 51, 255]))
    assert found.dtype == np.float32
    assert np.allclose(found, [-1.0, -0.6, 1.0])


def test_limits_that_take_nothing_are_refused():
    with pytest.raises(UserError, match=r"limits\.largest_pixels is 0"):
        ImageLimits(largest_pixels=0)


def test_limits_beyond_pillows_own_are_refused():
    with pytest.raises(UserError, match="Pillow decodes 178,956,970 at most"):
        ImageLimits(largest_pixels=10**9)
    with pytest.raises(BadImage, match="13,377 x 13,377 pixels"):
        decoded(bomb(13_377), LIMITS)
