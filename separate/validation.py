"""Validation of configuration values: pydantic checks types and ranges, and each error is one sentence."""

from __future__ import annotations

import copy
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

from separate.errors import UsageError, nearest
from separate.files import printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MISSING: Any = "???"  # OmegaConf's mark for a value that the user must set
LARGEST_INTEGER = 2**63 - 1  # in 64 bits
DIGITS = 40  # of an integer in a message; a longer one is described
LONGEST_TEXT = 160  # characters of a value in a message
MOST_VALUES = 10_000  # in a configuration
DEEPEST = 20  # levels of nested sections and lists

NAMES: dict[Any, tuple[str, str]] = {  # of types in messages: singular and plural
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "names"),
    type(None): ("null", "null"),
    Any: ("a value", "values"),
}
# pydantic's error types; float_type: also for integers that are too large for a float
OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than_equal", "finite_number", "float_type")
MISTYPED = ("_type", "is_instance_of", "sequence_str", "literal_error")


@dataclass(frozen=True)
class Range:
    """A closed range of numbers.  Integers beyond 64 bits, NaN and infinity are never in range.

    above: `least` itself is out of range.  unit: seconds, Hz, dB ...  example: a valid value, for messages.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    unit: str = ""
    example: Any = field(default=None, compare=False)

    def holds(self, value: Any) -> bool:
        """Whether `value` is a number in this range."""
        return fits(value, int if isinstance(value, int) else float, self)

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
) -> Any:
    """A dataclass field with a range, for a number, or for a list or mapping of numbers.

    above: an exclusive lower bound.  example: a valid value; by default the default.
    """
    example = default if example is None else example
    metadata = {"range": Range(least if above is None else above, most, above is not None, unit, example)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Option(NamedTuple):
    """The type and the range of a value in a configuration: of a dataclass field or a parameter of a callable."""

    hint: Any
    allowed: Range = ANY

    def check(self, key: str, value: Any) -> Any:
        """Return `value` converted to the type; UsageError if it has another type or is out of range."""
        from pydantic import ValidationError

        if isinstance(self.hint, type) and is_dataclass(self.hint):
            return typed(self.hint, value, f"{key}.")
        try:
            return _adapter(self.hint, self.allowed).validate_python(value)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if choices := _choices(self.hint):
            raise UsageError(f"{key}={brief(value)} is unknown; {nearest(brief(value), choices)}")
        example = ["a", "b"] if list[str] in _members(self.hint) else self.allowed.example
        shown = "" if example is None else f", e.g. {key}={brief(example)}"
        raise UsageError(f"{self._message(key, value, errors)}{shown}")

    def _message(self, key: str, value: Any, errors: Iterable[Any]) -> str:
        """The message for the first violated range or constraint, or else for the type.  errors: pydantic's."""
        for one in errors:
            found, kind = one["input"], one["type"]
            place = f"{_place(key, value, one['loc'])}={brief(found)}"
            if kind in OUT_OF_RANGE and type(found) in (int, float) and not self.allowed.holds(found):
                return f"{place} must be {self.allowed}"
            if not kind.endswith(MISTYPED):
                return f"{place}: {one['msg']}"
        bounds = "" if self.allowed == ANY else f", {self.allowed}"
        return f"{key}={brief(value)} must be {_in_words(self.hint, self.allowed)}{bounds}"


@cache
def options(schema: type) -> dict[str, Option]:
    """The fields of a dataclass by name."""
    hints = typing.get_type_hints(schema)
    return {one.name: Option(hints[one.name], one.metadata.get("range", ANY)) for one in fields(schema)}


def typed(schema: type, values: Any, prefix: str = "") -> Any:
    """`values` as a dataclass; UsageError, naming the key, for missing, unknown, mistyped and out-of-range values."""
    check_plain(values, prefix.rstrip("."))
    checked = validate(schema, values, prefix)
    for name in values:
        if name not in checked:
            raise UsageError(f"there is no key {prefix}{brief(name)}; {nearest(name, options(schema))}")
    made = schema(**checked)
    for name, value in vars(made).items():
        if isinstance(value, str):
            _check_text(f"{prefix}{name}", value)  # a default may be MISSING
    return made


def validate(schema: type, values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of the fields of a dataclass, converted to their types; fields may be missing, other keys are ignored.

    UsageError for mistyped and out-of-range values.  Sections of type `dict[str, Any]` are checked in `build`.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{prefix.rstrip('.')}={brief(values)} must be a section of keys with values")
    given = {name: option for name, option in options(schema).items() if name in values}
    return {name: option.check(f"{prefix}{name}", values[name]) for name, option in given.items()}


def fits(value: Any, hint: Any, allowed: Range = ANY) -> bool:
    """Whether a value and its items have the annotated types and are in a range."""
    from pydantic import ValidationError

    try:
        _adapter(hint, allowed).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@cache
def _adapter(hint: Any, allowed: Range) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)  # data.sources=[1,2] are names
    return TypeAdapter(_strict(hint, allowed), config=config)


def _strict(hint: Any, allowed: Range) -> Any:
    """The annotation with finite numbers in a range, without conversion of "3" to a number or of 1 to true."""
    from pydantic import Field, StrictBool

    if hint is int:
        least, most = max(allowed.least, -LARGEST_INTEGER), min(allowed.most, LARGEST_INTEGER)
        return Annotated[int, Field(strict=True, ge=math.ceil(least), le=math.floor(most))]
    if hint is float:
        bounds: Any = {"gt" if allowed.above else "ge": allowed.least, "le": allowed.most}
        return Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]
    if hint is bool:
        return StrictBool
    kind, inner = typing.get_origin(hint), tuple(_strict(one, allowed) for one in typing.get_args(hint))
    if kind is Literal or not inner:
        return hint
    return Union[inner] if kind is types.UnionType else kind[inner]  # noqa: UP007


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _choices(hint: Any) -> list[str]:
    """The values of an annotation that lists them, e.g. `bool | Literal["auto"]`; [] for any other."""
    values: list[str] = []
    for one in _members(hint):
        if typing.get_origin(one) is not Literal and one not in (bool, type(None)):
            return []
        listed = {bool: (True, False), type(None): (None,)}.get(one, typing.get_args(one))
        values += map(brief, listed)
    return values if hint is not bool else []


def _in_words(hint: Any, allowed: Range) -> str:
    """The name of a type in messages."""
    members = _members(hint)
    if len(members) > 1:
        return " or ".join(_in_words(one, allowed) for one in members)
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return _in_words(inner[0], allowed)
    if kind is Literal:
        return " or ".join(map(brief, inner))
    if hint in NAMES:
        return NAMES[hint][0]
    plural = NAMES.get(inner[-1], NAMES[Any])[1] if inner else ""
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a section of keys with values" if inner[-1] is Any else f"names with {plural}"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return f"a list of {plural}"
    return f"of type {getattr(hint, '__name__', hint)}"


def _place(key: str, value: Any, path: Iterable[Any]) -> str:
    """The key of an item, e.g. `terms.l1` or `betas[0]`.  path: of pydantic, which also holds names of types."""
    for part in path:
        if isinstance(value, Mapping) and part in value:
            key, value = f"{key}.{part}", value[part]
        elif isinstance(value, (list, tuple)) and isinstance(part, int):
            key, value = f"{key}[{part}]", value[part]
    return key


def check_finite(key: str, value: Any) -> None:
    """UsageError if a number in a value is NaN, infinite or an integer beyond 64 bits."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            check_finite(f"{key}.{name}", one)
    elif isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            check_finite(f"{key}[{place}]", one)
    elif isinstance(value, (int, float)) and not (isinstance(value, bool) or ANY.holds(value)):
        raise UsageError(f"{key}={brief(value)} must be {ANY}")


def check_plain(values: Any, where: str = "") -> None:
    """UsageError for a configuration that is too large, or holds an interpolation or a value that is not plain.

    An interpolation in another person's file could read the environment, so resolve your own before.
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
                    raise UsageError(f"{key or 'the configuration'} has the key {brief(name)}, which is not text")
                waiting.append((f"{key}.{name}" if key else name, one, depth + 1))
        elif isinstance(value, (list, tuple)):
            waiting.extend((key, one, depth + 1) for one in value)
        elif isinstance(value, str):
            _check_text(key, value)
        elif not isinstance(value, (bool, int, float, type(None))):
            raise UsageError(f"{key} is of type {type(value).__name__}; it must be a number, text, list or section")


def _check_text(key: str, value: str) -> None:
    if value == MISSING:
        raise UsageError(f"{key} is not set and has no default; add {key}=VALUE")
    if "${" in value:
        raise UsageError(f"{key}={brief(value)} is an interpolation, which is not resolved here; write its value")
    if "\0" in value or not _encodes(value):
        raise UsageError(f"{key} holds a zero byte or invalid Unicode; write it in plain text")


def _encodes(text: str) -> bool:
    """Whether a text is valid Unicode, or a file name in another encoding with surrogates for its bytes."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def brief(value: Any) -> str:
    """A value for a message: short and on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**DIGITS:  # Python does not print more than 4300 digits
        return f"an integer of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(map(brief, value[:10]))}{',…' if len(value) > 10 else ''}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name}: {brief(one)}' for name, one in list(value.items())[:10])}}}"
    else:
        text = str(value)
    text = " ".join(printable(text).split())
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
