"""Pan and scan, by the numbers of Gemma's processor, and how views are known."""

import io

import pytest
from PIL import Image

from gemma_train.data.images.decoding import BadImage, ImageLimits, decoded
from gemma_train.data.images.store import image_key
from gemma_train.data.images.views import PanAndScan, View, boxes, views, worded
from gemma_train.errors import UserError

LIMITS, CROPS = ImageLimits(), PanAndScan()


def file(width: int, height: int, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (600, 600, []),
        (600, 501, []),  # 1.198
        (600, 500, [(0, 0, 300, 500), (300, 0, 600, 500)]),
        (500, 600, [(0, 0, 500, 300), (0, 300, 500, 600)]),
        (500, 400, []),  # crops of 250 pixels are too small
        (3000, 1000, [(0, 0, 1000, 1000), (1000, 0, 2000, 1000), (2000, 0, 3000, 1000)]),
        (9000, 1000, [(n * 2250, 0, n * 2250 + 2250, 1000) for n in range(4)]),  # at most four
        (1001, 300, [(0, 0, 334, 300), (334, 0, 668, 300), (668, 0, 1001, 300)]),
        (1100, 255, []),
        (700, 280, [(0, 0, 350, 280), (350, 0, 700, 280)]),  # three would be too small
    ],
)
def test_crops_are_those_of_the_published_processor(width, height, expected):
    assert boxes(width, height, CROPS) == expected


def test_no_crop_is_ever_empty_or_leads_out():
    crops = PanAndScan(smallest_crop=7, most_crops=7)
    for width in range(1, 120):
        for left, upper, right, lower in boxes(width, 20, crops):
            assert 0 <= left < right <= width
            assert 0 <= upper < lower <= 20


def test_the_whole_is_known_by_its_file_and_a_crop_by_its_box_too():
    content = file(600, 500)
    assert views(content, LIMITS, None) == [View(image_key(content))]
    whole, one, other = views(content, LIMITS, CROPS)
    assert whole == View(image_key(content))
    assert (one.box, other.box) == ((0, 0, 300, 500), (300, 0, 600, 500))
    assert len({whole.key, one.key, other.key}) == 3
    assert views(content, LIMITS, CROPS) == [whole, one, other]


def test_the_size_that_a_head_tells_is_that_of_the_picture():
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    for format in ("PNG", "JPEG", "TIFF"):
        content = file(640, 300, format, exif=exif)
        picture = decoded(content, LIMITS)
        expected = boxes(*picture.size, CROPS)
        assert [view.box for view in views(content, LIMITS, CROPS)][1:] == expected


def test_a_view_of_no_image_is_refused():
    with pytest.raises(BadImage, match="not one of"):
        views(b"no image", LIMITS, None)


def test_crops_stand_in_words():
    whole, one, other = (View(bytes([n]) * 32) for n in range(3))
    assert worded([whole]) == [whole]
    assert worded([whole, one, other]) == [
        "Here is the original image ",
        whole,
        " and here are some crops to help you see better ",
        one,
        " ",
        other,
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"smallest_ratio": 0.5}, "pan_and_scan.smallest_ratio is 0.5"),
        ({"most_crops": 1}, "pan_and_scan.most_crops is 1"),
        ({"smallest_crop": 3}, "pan_and_scan.smallest_crop is 3: it must be at least most_crops"),
    ],
)
def test_numbers_that_make_no_crops_are_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        PanAndScan(**wrong)
