"""Whether a config's values are of the kinds that its fields declare: one check for all configs.

A misspelt choice or a string for a number would otherwise be found where it is used, late and in
other words, or not at all: a comparison with a choice that does not exist is false.
"""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gemma_train.errors import UserError

_LARGEST = 2**63 - 1  # integer: nothing counts further, NumPy cannot
_PLAIN = {int: "an integer", float: "a finite number", str: "a string", NoneType: "None"}


def check_fields(config: Any, name: str = "") -> None:
    """Raise `UserError` for the first field, here or in configs within, that is of another kind.

    `name` is the config's own, as in 'loss.teacher'. An int is a float; a bool is no number. Those
    of NumPy are refused: a record holds Python's own.
    """
    for field, kinds in _fields(type(config)).items():
        _check(getattr(config, field), kinds, f"{name}.{field}".lstrip("."))


def check_values(config: type, values: Mapping[str, Any], name: str = "") -> None:
    """The same of values that a config would be made of: from anywhere, they are looked at first.

    Names that are no field are left to the config itself.
    """
    kinds = _fields(config)
    for field, value in values.items():
        if field in kinds:
            _check(value, kinds[field], f"{name}.{field}".lstrip("."))


@cache
def _fields(config: type) -> dict[str, tuple[Any, ...]]:
    """The alternatives of every field."""
    return {field: _alternatives(hint) for field, hint in get_type_hints(config).items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _check(value: Any, kinds: tuple[Any, ...], name: str) -> None:
    kind = next((kind for kind in kinds if _fits(value, kind)), None)
    if kind is None:
        raise UserError(f"{name} is {_told(value)}: {_advice(kinds)}")
    if is_dataclass(value):
        check_fields(value, name)
    elif isinstance(value, tuple):
        for index, (one, of) in enumerate(
            zip(value, _elements(kind, len(value)) or (), strict=True)
        ):
            _check(one, _alternatives(of), f"{name}[{index}]")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of this kind, whatever is in it."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return type(value) is tuple and _elements(kind, len(value)) is not None
    if kind is float and type(value) is float:
        return math.isfinite(value)
    if kind in (int, float) and type(value) is int:
        return abs(value) <= _LARGEST
    return type(value) is kind


def _elements(kind: Any, length: int) -> tuple[Any, ...] | None:
    """The kinds of a tuple's elements; None where it does not have so many."""
    of = get_args(kind)
    if of[-1] is Ellipsis:
        return (of[0],) * length
    return of if len(of) == length else None


def _told(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, int) and abs(value) > _LARGEST:  # Python may refuse to write it out
        return f"an integer of {value.bit_length()} bits, more than 63"
    return repr(value)


def _advice(kinds: tuple[Any, ...]) -> str:
    """What would do."""
    words = [word for kind in kinds for word in _words(kind)]
    verb = "give" if {int, float, str} & set(kinds) or get_origin(kinds[0]) is tuple else "choose"
    return f"{verb} {' or '.join(filter(None, (', '.join(words[:-1]), words[-1])))}"


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [repr(choice) for choice in get_args(kind)]
    if get_origin(kind) is tuple:
        return ["a tuple"]
    if kind is bool:
        return ["True", "False"]
    return [_PLAIN.get(kind) or f"{kind.__name__}(...)"]
