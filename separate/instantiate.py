"""Build the classes and functions named by `_target_` in a configuration; a checkpoint may build only trusted ones."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from separate.errors import UsageError, nearest
from separate.validation import Option, Range, brief, check_finite, fits

OURS = {  # the package from which a checkpoint may build each section
    "model": "separate.models.",
    "loss": "separate.losses.",
    "target": "separate.targets.",
    "data": "separate.data.layouts.",
    "augment": "separate.data.mixing.",
    "optimizer": "separate.training.optimizers.",
    "scheduler": "separate.training.schedules.",
}


def build(spec: Any, where: str, trust: Sequence[str] | None = None, **context: Any) -> Any:
    """Call the class or function that `spec` names by `_target_` with the other keys of `spec`.

    spec: `{_target_: package.module.Name, key: value, ...}`; values may be specs themselves.  `_partial_: true` gives
    the function with its arguments bound, to be called later.  where: the name of the section, for messages.
    context: further arguments (sizes, the target of a loss), passed if the callable has a parameter of that name.
    trust: prefixes of trusted packages, besides those in `OURS`; None trusts all.
    UsageError for a target that cannot be imported, is not trusted or refuses its arguments.
    """
    target = find_target(spec, where, trust)
    arguments = _arguments(spec, where, target, trust, context)
    if spec.get("_partial_"):
        return functools.partial(target, **arguments) if arguments else target
    try:
        return target(**arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:  # torch's are RuntimeErrors
        raise UsageError(f"{where}: {brief(error) or 'not enough memory; use smaller sizes'}") from error


def find_target(spec: Any, where: str, trust: Sequence[str] | None = None) -> Callable[..., Any]:
    """The class or function that `spec` names, imported; UsageError as in `build`."""
    name = spec.get("_target_") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise UsageError(f"{where}._target_={brief(name)} must be the dotted name of a class or function")
    package, sections = name.partition(".")[0], where.split(".")
    section = "target" if sections[-1] == "target" else sections[0]  # loss.terms.l1.target
    own = OURS.get(section, "separate.no_package.")
    if trust is not None and not name.startswith((own, *trust)):
        raise UsageError(
            f"{where}._target_={name} comes from a package that is not trusted; if you trust the author of this "
            f"file, allow it with --trust {package} (in Python: trust=['{package}'])"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{where}._target_={name} cannot be imported: {error}; is its folder on PYTHONPATH?") from None
    if not hasattr(found, attribute):
        near = nearest(attribute, [n for n in dir(found) if not n.startswith("_")])
        raise UsageError(f"{where}._target_={name}: {module} has no {attribute}; {near}")
    target = getattr(found, attribute)
    imported = not f"{getattr(target, '__module__', '')}.".startswith(own)  # e.g. os in one of our modules
    if not callable(target) or (trust is not None and name.startswith(own) and imported):
        raise UsageError(f"{where}._target_={name} is not a class or function defined there; name another")
    return target


def signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function by name; none if it has no signature."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return {}


def _arguments(
    spec: Mapping[str, Any], where: str, target: Callable[..., Any], trust: Sequence[str] | None, context: Mapping
) -> dict[str, Any]:
    """The arguments of `target`, checked against its signature."""
    name = spec["_target_"]
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        raise UsageError(
            f"{where}._target_={name} has no signature to check options with; name another class"
        ) from None
    free = [key for key in parameters if key not in context and key not in ("self", "params")]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {}
    for key, value in spec.items():
        place = f"{where}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if key not in free and not takes_any:
            raise UsageError(f"there is no key {place} ({name}); {nearest(key, free)}")
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[key] = build(value, place, trust, **context)
        else:
            option = _option(target, parameters[key]) if key in parameters else Option(Any)
            arguments[key] = option.check(place, value)
            check_finite(place, arguments[key])  # numbers in parameters of any type
    return {**arguments, **{key: value for key, value in context.items() if key in parameters}}


def _option(target: Callable[..., Any], parameter: inspect.Parameter) -> Option:
    """The type of a parameter, with its default as the example; Any for a type that pydantic cannot check."""
    empty, default = parameter.empty, parameter.default
    annotation = parameter.annotation
    if annotation is empty:
        annotation = float if isinstance(default, float) else Any
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    example = Range(example=None if default is empty else default)
    try:
        hint = typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)["value"]
        fits(None, hint)  # raises if pydantic does not support the type
    except Exception:  # e.g. a name that only type checkers import
        hint = Any
    return Option(hint, example)


def trusted(packages: Sequence[str]) -> tuple[str, ...]:
    """The prefixes of packages that the user trusts, for `build`."""
    return tuple(f"{package}." for package in packages)


def targets_in(config: Any) -> list[str]:
    """Every `_target_` in a configuration."""
    if not isinstance(config, Mapping):
        return []
    own = [config["_target_"]] if "_target_" in config else []
    return own + [name for value in config.values() for name in targets_in(value)]
