"""Ranges of the numbers in a configuration: declared with each field, and refused in one sentence."""

from __future__ import annotations

import copy
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from separate.errors import UsageError
from separate.files import printable

LARGEST_INTEGER = 2**63 - 1  # what 64 bits hold
SHOWN = 40  # characters of a refused value


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, ends included; `above` excludes the lower one.  unit: seconds, Hz, dB ...

    words: accepted instead of a number, e.g. auto.

    NaN and infinity lie in no range, nor do integers beyond 64 bits.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    unit: str = ""
    example: Any = None
    words: tuple[str, ...] = ()

    def holds(self, value: float) -> bool:
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            return False
        large_enough = self.least < value if self.above else self.least <= value
        return math.isfinite(value) and large_enough and value <= self.most

    def __str__(self) -> str:
        parts = [f"{'above' if self.above else 'at least'} {_plain(self.least)}"] if self.least > -math.inf else []
        parts += [f"at most {_plain(self.most)}"] if self.most < math.inf else []
        return f"{' and '.join(parts) or 'a finite number of at most 64 bits'} {self.unit}".rstrip()


ANY = Range()


def number(
    default: Any = NO_DEFAULT,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    unit: str = "",
    example: Any = None,
    words: tuple[str, ...] = (),
) -> Any:
    """A dataclass field for a number, or for a list or mapping of numbers, with its range.

    above: a lower bound that is itself excluded.  example: a value that works, by default the default.
    words: accepted instead of a number, e.g. auto.
    """
    example = default if example is None else example
    allowed = Range(least if above is None else above, most, above is not None, unit, example, words)
    metadata = {"range": allowed}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(schema: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """UsageError for a value of a dataclass's field that is of another type or outside its range.

    Sections of any class, `dict[str, Any]`, are checked when the class is built.
    """
    hints = _hints(schema)
    for one in fields(schema):
        if one.name not in values:
            continue
        value, key = values[one.name], f"{prefix}{one.name}"
        if is_dataclass(value):
            check_ranges(type(value), vars(value), f"{key}.")
        elif is_dataclass(hints[one.name]) and isinstance(value, Mapping):
            check_ranges(hints[one.name], value, f"{key}.")
        elif not fits(value, hints[one.name]) or _no_word(value, one.metadata.get("range", ANY)):
            raise mistyped(schema, one.name, value, key)
        elif dict[str, Any] not in _choices(hints[one.name]):
            check_numbers(key, value, one.metadata.get("range", ANY))


def check_containers(schema: type, values: Any, prefix: str = "") -> None:
    """UsageError for a list or a section in place of a number or a text, or the other way round."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{prefix.rstrip('.')}={brief(values)} must be a section of keys with values")
    hints = _hints(schema)
    for key, value in values.items():
        hint = hints.get(key) if isinstance(key, str) else None
        if is_dataclass(hint):
            check_containers(hint, value, f"{prefix}{key}.")  # type: ignore[arg-type]
        elif any(isinstance(one, int) and abs(one) > LARGEST_INTEGER for _, one in numbers_in(value)) and hint:
            check_numbers(f"{prefix}{key}", value, range_of(schema, key))  # too large to be converted
        elif hint not in (None, Any) and value is not None and value != "???":
            inner = [typing.get_origin(one) or one for one in _choices(hint)]
            kind = next((k for k in (list, dict) if isinstance(value, k)), None)
            if (kind not in inner) if kind else all(one in (list, dict, type(None)) for one in inner):
                raise mistyped(schema, key, value, f"{prefix}{key}")


def mistyped(schema: type, name: str, value: Any, key: str) -> UsageError:
    """The error for a value that is not of its field's type."""
    one = next(one for one in fields(schema) if one.name == name)
    allowed, hint = one.metadata.get("range"), _hints(schema)[name]
    example = f", e.g. {key}={brief(allowed.example)}" if allowed and allowed.example is not None else ""
    kinds = [
        " or ".join(allowed.words)
        if allowed and allowed.words and choice is str
        else _WORDS.get(choice, getattr(choice, "__name__", "a value"))
        for choice in _choices(hint)
    ]
    if not example and kinds[0] == _WORDS[list[str]]:
        example = f", e.g. {key}=[a,b]"
    bounds = f", {allowed}" if allowed else ""
    return UsageError(f"{key}={brief(value)} must be {' or '.join(kinds)}{bounds}{example}")


def _no_word(value: Any, allowed: Range) -> bool:
    """Whether a value is a text other than the words accepted in place of a number."""
    return bool(allowed.words) and isinstance(value, str) and value not in allowed.words


def range_of(schema: type, name: str) -> Range:
    """The range of a field."""
    allowed: Range = next(one for one in fields(schema) if one.name == name).metadata.get("range", ANY)
    return allowed


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type, items of lists and mappings included."""
    if hint is Any:
        return True
    choices = _choices(hint)
    if len(choices) > 1:
        return any(fits(value, choice) for choice in choices)
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    list[str]: "a list of names",
    list[float]: "a list of numbers",
    dict[str, int]: "names with integers",
    dict[str, str]: "names with names",
    dict[str, Any]: "a section of keys with values",
}


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def check_numbers(key: str, value: Any, allowed: Range = ANY) -> None:
    """UsageError for a number in a plain value (a number, a list, a mapping) that lies outside a range."""
    for found, one in numbers_in(value, key):
        if not allowed.holds(one):
            example = "" if allowed.example is None else f", e.g. {key}={brief(allowed.example)}"
            raise UsageError(f"{found}={brief(one)} must be {allowed}{example}")


def numbers_in(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of each number in a plain value; booleans are left out."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from numbers_in(one, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            yield from numbers_in(one, f"{key}[{place}]")


def brief(value: Any) -> str:
    """A value as a message shows it: on one line and short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**SHOWN:  # beyond 4300 digits Python does not print it
        return f"an integer of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(map(brief, value[:10]))}{',…' if len(value) > 10 else ''}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name}: {brief(one)}' for name, one in list(value.items())[:10])}}}"
    else:
        text = str(value)
    text = " ".join(printable(text).split())
    return text if len(text) <= 4 * SHOWN else f"{text[: 4 * SHOWN]}…"


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


MOST_VALUES = 10_000  # in a configuration
DEEPEST = 20  # sections and lists within each other


def check_plain(values: Any, where: str = "") -> None:
    """UsageError for a configuration that is too large, or holds an interpolation or a value that is not plain.

    Interpolations must be resolved before: one in somebody else's file could read the environment.
    """
    count, waiting = 0, [(where, values, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise UsageError(
                f"{where or 'the configuration'} holds more than {MOST_VALUES} values or {DEEPEST} levels of sections"
            )
        if isinstance(value, dict):
            for name, one in value.items():
                if not isinstance(name, str) or not _encodes(name):
                    raise UsageError(f"{key or 'the configuration'} has the key {brief(name)}, which is no text")
                waiting.append((f"{key}.{name}" if key else name, one, depth + 1))
        elif isinstance(value, (list, tuple)):
            waiting.extend((key, one, depth + 1) for one in value)
        elif isinstance(value, str):
            if "${" in value:
                raise UsageError(
                    f"{key}={brief(value)} is an interpolation, which is not resolved here; write its value"
                )
            if "\0" in value or not _encodes(value):
                raise UsageError(f"{key} holds a zero byte or invalid Unicode, which neither a name nor a text can")
        elif not isinstance(value, (bool, int, float, type(None))):
            raise UsageError(f"{key} is of type {type(value).__name__}, and must be a number, text, list or section")


def _encodes(text: str) -> bool:
    """Whether a text is Unicode, or a file name in another encoding as Python represents it."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
