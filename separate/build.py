"""From a configuration to its parts: classes by name, arguments checked, from a checkpoint only trusted ones."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from separate.config import check_sources
from separate.errors import UsageError, nearest

if TYPE_CHECKING:
    from separate.losses import Loss
    from separate.separator import Separator

OURS = ("separate.models.", "separate.losses.", "separate.targets.")  # what a checkpoint may build


def build(spec: Mapping[str, Any], where: str, trust: Sequence[str] | None = None, **context: Any) -> Any:
    """Make what `spec` names: `_target_` called with its other keys, and with what of `context` it takes.

    spec: `{_target_: package.module.Name, key: value, ...}`, nested specs allowed; `_partial_: true` gives the
    function with its arguments bound, for what is called later.  where: the name of the section, for errors.
    context: values that a configuration cannot know (sizes, the target of a loss).
    trust: the package prefixes that may be imported; None trusts all, as in the user's own configuration.
    """
    name = spec.get("_target_")
    if not isinstance(name, str) or "." not in name:
        raise UsageError(f"{where}._target_={name} must be the dotted name of a class or function")
    if trust is not None and not name.startswith(tuple(trust)):
        raise UsageError(
            f"{where}._target_={name} comes from a package that is not trusted; if you trust the file it stands in, "
            f"allow it with --trust {name.split('.')[0]} (in Python: trust=['{name.split('.')[0]}'])"
        )
    target = _import(name, where)
    if not callable(target) or (
        trust is not None and name.startswith(OURS) and not f"{target.__module__}.".startswith(OURS)
    ):
        raise UsageError(f"{where}._target_={name} is no class or function of its own; name one")
    arguments = {key: value for key, value in spec.items() if key not in ("_target_", "_partial_")}
    arguments = {
        key: build(value, f"{where}.{key}", trust, **context) if _is_spec(value) else value
        for key, value in arguments.items()
    }
    parameters = inspect.signature(target).parameters
    _check_arguments(where, name, arguments, parameters, context)
    arguments.update({key: value for key, value in context.items() if key in parameters})
    if spec.get("_partial_"):
        return functools.partial(target, **arguments) if arguments else target
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _import(name: str, where: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{where}._target_={name} cannot be imported: {error}; is its folder on PYTHONPATH?") from None
    if not hasattr(found, attribute):
        near = nearest(attribute, [n for n in dir(found) if not n.startswith("_")])
        raise UsageError(f"{where}._target_={name}: {module} has no {attribute}; {near}")
    return getattr(found, attribute)


def _check_arguments(
    where: str, name: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], context: Mapping
) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    free = [key for key in parameters if key not in context and key not in ("self", "params")]
    for key, value in given.items():
        if key not in free:
            raise UsageError(f"there is no key {where}.{key} ({name}); {nearest(key, free)}")
        default = parameters[key].default
        if not _fits(value, parameters[key].annotation, default):
            kind = parameters[key].annotation if isinstance(parameters[key].annotation, str) else type(default).__name__
            example = "" if default is inspect.Parameter.empty else f", e.g. {where}.{key}={default}"
            raise UsageError(f"{where}.{key}={value} must be of type {kind}{example}")


def _fits(value: Any, annotation: Any, default: Any) -> bool:
    """Whether a plain value is of the annotated plain type; of other annotations only numbers are told from text."""
    if isinstance(default, float) and isinstance(value, (str, bool)):
        return False
    names = annotation.split(" | ") if isinstance(annotation, str) else [getattr(annotation, "__name__", "")]
    plain: dict[str, tuple[type, ...]] = {
        "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)
    }  # fmt: skip
    if any(name not in plain for name in names):
        return True
    kinds = tuple(kind for name in names for kind in plain[name])
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def trusted(packages: Sequence[str]) -> tuple[str, ...]:
    """What a configuration out of a checkpoint may build: our own classes, and those of packages the user names."""
    return (*OURS, *(f"{package}." for package in packages))


def targets_in(config: Any) -> list[str]:
    """Every `_target_` that a configuration names."""
    if not isinstance(config, Mapping):
        return []
    own = [config["_target_"]] if "_target_" in config else []
    return own + [name for value in config.values() for name in targets_in(value)]


def build_separator(config: Mapping[str, Any], trust: Sequence[str] | None = None) -> Separator:
    """The separator of a resolved training configuration, with fresh weights."""
    from separate.separator import Separator
    from separate.stft import STFT

    data = config["data"]
    check_sources(data["sources"], data["interchangeable"])
    try:
        stft = STFT(**config["stft"])
    except ValueError as error:
        raise UsageError(f"stft: {error}") from None
    network = build(
        config["model"],
        "model",
        trust,
        sources=len(data["sources"]),
        channels=data["channels"],
        bins=stft.bins,
        sample_rate=data["sample_rate"],
    )
    if not set(getattr(network, "provides", ())) & {"masks", "waveforms"}:
        raise UsageError(
            f"{config['model']['_target_']} does not say what it provides; give it "
            f"provides = ('masks',) or ('waveforms',)"
        )
    return Separator(network, stft, data["sources"], data["sample_rate"], data["channels"], data["interchangeable"])


def build_loss(config: Mapping[str, Any], separator: Separator, trust: Sequence[str] | None = None) -> Loss:
    """The loss of a resolved training configuration; UsageError for a target or a model that it cannot work with."""
    target = build(config["target"], "target", trust)
    loss: Loss = build(config["loss"], "loss", trust, target=target, interchangeable=config["data"]["interchangeable"])
    name = config["loss"]["_target_"].rpartition(".")[2]
    domain = getattr(target, "domain", None) or getattr(getattr(target, "func", None), "domain", None)
    if domain != loss.domain:
        from separate import targets

        works = [key for key, value in vars(targets).items() if getattr(value, "domain", None) == loss.domain]
        raise UsageError(
            f"{name} compares {loss.domain}s and target={config['target']['_target_'].rpartition('.')[2]} is a "
            f"{domain}; it works with target={', '.join(works)}"
        )
    if loss.needs != "estimates" and loss.needs not in separator.network.provides:
        raise UsageError(
            f"{name} needs {loss.needs}, and {type(separator.network).__name__} provides "
            f"{', '.join(separator.network.provides)}; use loss=si_sdr, or a model with {loss.needs}: model=blstm"
        )
    return loss
