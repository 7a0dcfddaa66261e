"""Mappings from outside become frozen dataclasses here, and nowhere else.

A recipe arrives as YAML or as a command line's overrides: plain mappings. `from_mapping` turns one into the dataclass
that states what is allowed, and refuses everything else by its full key: an unknown key (with the nearest known one), a
wrong type, a missing value. No value is ever converted silently, except an integer where a float is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ringworld.errors import UserError

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], at: str = "recipe") -> T:
    """The dataclass `cls` from a plain mapping; `at` is the key under which the mapping was found.

    Raises UserError naming the full key, the value and what is allowed.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{at}={mapping!r}: expected keys {_names(cls)}")
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            raise UserError(f"{at}.{key}: unknown key{_nearest(str(key), known)}; allowed: {_names(cls)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in known.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{at}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{at}.{name}: missing; it must be given")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{at}: {error}") from None


def to_mapping(value: Any) -> Any:
    """A dataclass as mappings, lists and scalars: what YAML and JSON can hold. The inverse of `from_mapping`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_mapping(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_mapping(item) for item in value]
    return value


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert_any([argument for argument in arguments if argument is not type(None)], value, at)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise UserError(
                f"{at}={value!r}: allowed: {', '.join(map(str, arguments))}{_nearest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, at)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise UserError(f"{at}={value!r}: expected a mapping")
        return {str(key): _convert(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, at)  # type: ignore[arg-type]
    return _scalar(hint, value, at)


def _convert_any(hints: Sequence[Any], value: Any, at: str) -> Any:
    for hint in hints[:-1]:
        try:
            return _convert(hint, value, at)
        except UserError:
            continue  # the last one's refusal is the one to tell
    return _convert(hints[-1], value, at)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"{at}={value!r}: expected a list, as in {at}=[{value}]")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{at}[{index}]") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise UserError(f"{at}={list(value)!r}: expected {len(arguments)} values")
    return tuple(
        _convert(hint, item, f"{at}[{index}]") for index, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _scalar(hint: Any, value: Any, at: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise UserError(f"{at}={value!r}: expected {kinds.get(hint, hint)}, got {type(value).__name__}")


def _names(cls: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls))


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
