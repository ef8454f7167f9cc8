"""The pictures that are encoded of an image: the whole of it and, if asked, crops of it.

Gemma's pan and scan: of a picture that is much longer than it is wide, neighbouring crops of its
whole length are encoded too, so that less is lost where it is squeezed into a square (report 2.1;
transformers, models/gemma3/image_processing_gemma3.py and processing_gemma3.py for the words around
them). Gemma uses it when it answers, not when it is trained.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import ceil, floor
from typing import NamedTuple

from gemma_train.data.images.decoding import ImageLimits, opened
from gemma_train.data.images.store import image_key
from gemma_train.errors import require

Box = tuple[int, int, int, int]  # left, upper, right, lower edge in pixels
WHOLE_IS, CROPS_ARE, BETWEEN = (  # as the processor says them
    "Here is the original image ",
    " and here are some crops to help you see better ",
    " ",
)


@dataclass(frozen=True, kw_only=True)
class PanAndScan:
    """Crops of long pictures, by the numbers of Gemma's processor."""

    smallest_ratio: float = 1.2  # of the longer side to the shorter; below it none are made
    most_crops: int = 4  # of a picture
    smallest_crop: int = 256  # pixels of a crop's shorter side; smaller ones are not made

    def __post_init__(self) -> None:
        require(
            self.smallest_ratio >= 1,
            f"pan_and_scan.smallest_ratio is {self.smallest_ratio}: it must be at least 1",
        )
        require(
            self.most_crops >= 2,
            f"pan_and_scan.most_crops is {self.most_crops}: it must be at least 2",
        )
        require(
            self.smallest_crop >= self.most_crops,  # else the last crop could be empty
            f"pan_and_scan.smallest_crop is {self.smallest_crop}: it must be at least most_crops, "
            f"{self.most_crops}",
        )


class View(NamedTuple):
    """A picture to encode: of a file, all of it or a box."""

    key: bytes  # by which its embeddings are known
    box: Box | None = None


def views(content: bytes, limits: ImageLimits, crops: PanAndScan | None) -> list[View]:
    """The whole picture of an image file, then its crops. Reads its head alone; raises `BadImage`.

    A crop is known by its image and its box.
    """
    width, height = opened(content, limits).size
    key = image_key(content)
    found = boxes(width, height, crops) if crops else []
    return [View(key), *(View(sha256(key + repr(box).encode()).digest(), box) for box in found)]


def worded(found: list[View]) -> list[str | View]:
    """The views of an image as they stand in a document: with words where there are crops."""
    whole, *crops = found
    if not crops:
        return [whole]
    between: list[str | View] = [part for crop in crops for part in (BETWEEN, crop)]
    return [WHOLE_IS, whole, CROPS_ARE, *between[1:]]


def boxes(width: int, height: int, crops: PanAndScan) -> list[Box]:
    """The crops of a picture of this size, from left to right or from top to bottom."""
    longer, shorter = max(width, height), min(width, height)
    if longer / shorter < crops.smallest_ratio:
        return []
    count = min(floor(longer / shorter + 0.5), longer // crops.smallest_crop)
    count = min(max(count, 2), crops.most_crops)
    length = ceil(longer / count)
    if min(length, shorter) < crops.smallest_crop:
        return []
    edges = [(start, min(start + length, longer)) for start in range(0, count * length, length)]
    if width >= height:
        return [(start, 0, end, height) for start, end in edges]
    return [(0, start, width, end) for start, end in edges]
