"""Damage to a record in Python: values that must not be computed, names that must not be called."""

import re
from random import Random

_VALUE = re.compile(r"(?<==)(?:'[^'\n]*'|[\w.+-]+)(?=[,)])")
_NAME = re.compile(r"\b[A-Z]\w+(?=\()")
_VALUES = (
    *("None", "True", "...", "''", "'x'", "b'x'", "'a\\nb'", "'\\x1b[2J'", "'\\ud800'", "f'{1}'"),
    *("0", "1", "-1", "2", "3", "0.5", "-0.0", "1e308", "1e999", "-1e999", "1j", "2**31", "(0,)"),
    *("2147483648", "9223372036854775807", "9223372036854775808", "1" * 400, "9" * 5_000),
    *("10**10**10", "'x' * 10**12", "(0,) * 10**12", "[0] * 10**12", "1 / 0", "'a' 'b'", "()"),
    *(
        "[]",
        "{}",
        "{1, 2}",
        "{'a': 1}",
        "(None,)",
        "((),)",
        "('local',) * 3",
        "RunConfig",
        "config",
    ),
    *("eval('1')", "open('x', 'w')", "__import__('os')", "exit()", "print", "(lambda: 0)()"),
    *("TopK()", "Stored()", "GemmaConfig()", "RunConfig()", "MeshConfig(replica=10**9)", "TopK"),
    *("(" * 150 + "1" + ")" * 150, "(" * 5_000 + ")" * 5_000, "-" * 20_000 + "1"),
    *("TopK(candidates=" * 300 + "1" + ")" * 300, "(" * 90 + "1" + ",)" * 90, f"'{'x' * 100_000}'"),
    *("+".join("1" * 10_000), "[" * 100_000, "not " * 5_000 + "1", "x" + ".y" * 5_000),
)
_NAMES = ("eval", "exec", "open", "print", "dict", "type", "int", "TopK", "Nothing", "str.format")
_INSERTED = (
    *(
        "**{'folder': 'x'}, ",
        "*(1, 2), ",
        "seed=1, seed=2, ",
        "unheard_of=1, ",
        "1, ",
        "lambda: 0, ",
    ),
    *("\x00", "\n", "\\", "'", '"""', "(", ")", "#", "\f", "\ufeff", "a := 1, ", "{}.x", "\t"),
)
_LAST = (
    *(
        "config = config\n",
        "config = 1\n",
        "other = 2\n",
        "a, b = 1\n",
        "config.x = 1\n",
        "return\n",
    ),
    *("# coding: utf-16\n", "import os\n", "while True: pass\n", "config += 1\n", "x = yield\n"),
)


def hurt(content: bytes, random: Random) -> bytes:
    """The record with one thing wrong. Raises `ValueError` for what is no text."""
    text = content.decode()
    match random.choice(("value", "value", "value", "value", "name", "in", "last", "keyword")):
        case "value":
            text = _put(text, _VALUE, random.choice(_VALUES), random)
        case "name":
            text = _put(text, _NAME, random.choice(_NAMES), random)
        case "in":
            text = _put(text, re.compile(r"(?<=[(,])\s*"), random.choice(_INSERTED), random)
        case "last":
            text = random.choice((f"{text}{random.choice(_LAST)}", random.choice(_LAST) + text))
        case "keyword":
            text = _put(text, re.compile(r"\b\w+(?==)"), random.choice(("x", "seed", "")), random)
    return text.encode("utf-8", "surrogatepass")


def _put(text: str, what: re.Pattern[str], value: str, random: Random) -> str:
    """Put a value in place of one of the matches."""
    found = list(what.finditer(text))
    if not found:
        raise ValueError("nothing of it is left")
    match = random.choice(found)
    return text[: match.start()] + value + text[match.end() :]
