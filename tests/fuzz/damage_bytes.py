"""Damage to bytes, whatever they mean."""

import struct
from random import Random

_EXTREMES = (0, 1, -1, 2, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63)
_HEAD = 256  # bytes in which the numbers of a header are looked for
_LONGEST_RUN = 64
_KINDS = ("flip", "cut", "zero", "noise", "twice", "out", "number", "number", "head", "more")


def hurt(content: bytes, random: Random) -> bytes:
    """The bytes with one thing wrong about them."""
    if not content:
        return random.randbytes(random.randint(1, _LONGEST_RUN))
    here = bytearray(content)
    start = random.randrange(len(here))
    stop = min(len(here), start + random.randint(1, _LONGEST_RUN))
    match random.choice(_KINDS):
        case "flip":
            for _ in range(random.randint(1, 8)):
                here[random.randrange(len(here))] ^= 1 << random.randrange(8)
        case "cut":
            del here[start:]
        case "zero":
            here[start:stop] = bytes(stop - start)
        case "noise":
            here[start:stop] = random.randbytes(stop - start)
        case "twice":
            here[start:start] = here[start:stop] * random.choice((1, 1, 2, 50))
        case "out":
            del here[start:stop]
        case "number":
            _extreme(here, start, random)
        case "head":
            _extreme(here, random.randrange(min(len(here), _HEAD)), random)
        case "more":
            here += random.randbytes(stop - start)
    return bytes(here)


def _extreme(here: bytearray, start: int, random: Random) -> None:
    """Put an integer that no reader expects in place of what is there."""
    width = random.choice((1, 2, 4, 8))
    value = random.choice(_EXTREMES) % 2 ** (8 * width)
    packed = struct.pack(random.choice("<>") + "Q", value)
    low = packed[:width] if packed == struct.pack("<Q", value) else packed[-width:]
    if random.random() < 0.5:
        start -= start % width
    here[start : start + width] = low[: len(here) - start]
