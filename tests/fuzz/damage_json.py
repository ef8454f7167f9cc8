"""Damage to JSON: other types, extreme numbers, keys that are missing or not asked for."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

_MARK = "the value that is put here"
# As text, for not all of them are values that Python would write.
_VALUES = (
    *("null", "true", "false", '""', "[]", "{}", "[null]", '{"a": 1}', "[[[0]]]", '[1, "b"]'),
    *("0", "1", "-1", "2", "3", "7", "0.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999"),
    *("2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775808", "18446744073709551616", "1" * 400, "9" * 5_000, "NaN", "-Infinity"),
    *('"x"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"\\r\\u001b[2J"', '"\\u2028"', '"nan"'),
    *('"/"', '"."', '".."', '"../../up"', '"%s{0}"', f'"{"x" * 100_000}"'),
    *("[" * 500 + "]" * 500, '{"a":' * 2_000 + "1" + "}" * 2_000, "[" * 100_000, "[0]" * 3),
    "[" + "0," * 10_000 + "0]",
)
_KEYS = ("format_version", "", "a", "__class__", "\ud800", "step", "shape", "x" * 1_000)


def hurt(content: bytes, random: Random) -> bytes:
    """The JSON with one thing wrong. Raises `ValueError` for what is none already."""
    tree = [json.loads(content)]
    holder, key = random.choice(list(_places(tree)))
    match random.choice(("other", "other", "other", "other", "gone", "new", "twin")):
        case "other":
            holder[key] = _MARK
        case "gone" if holder is not tree:
            del holder[key]
        case "new" if isinstance(holder, dict):
            holder[random.choice(_KEYS)] = _MARK
        case "new" | "gone":
            holder.append(_MARK)
        case "twin":
            _, twin = random.choice(list(_places(tree)))
            holder[key] = twin
    text = json.dumps(tree)[1:-1]
    return text.replace(f'"{_MARK}"', random.choice(_VALUES)).encode()


def hurt_line(content: bytes, random: Random) -> bytes:
    """One line of many. Raises `ValueError` for one that is no JSON already."""
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    lines[number] = hurt(lines[number], random)
    return b"\n".join(lines)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
