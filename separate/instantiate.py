"""From a configuration to its parts: classes by name, arguments checked, from a checkpoint only trusted ones."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from separate.config import check_sources
from separate.errors import UsageError, nearest
from separate.validation import Range, brief, check_numbers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from separate.losses import Loss
    from separate.separator import Separator

HEADS = ("masks", "complex_masks", "waveforms", "embeddings")
OURS = ("separate.models.", "separate.losses.", "separate.targets.")  # what a checkpoint may build


def build(spec: Mapping[str, Any], where: str, trust: Sequence[str] | None = None, **context: Any) -> Any:
    """Make what `spec` names: `_target_` called with its other keys, and with what of `context` it takes.

    spec: `{_target_: package.module.Name, key: value, ...}`, nested specs allowed; `_partial_: true` gives the
    function with its arguments bound, for what is called later.  where: the name of the section, for errors.
    context: values that a configuration cannot know (sizes, the target of a loss).
    trust: the package prefixes that may be imported; None trusts all, as in the user's own configuration.
    """
    target = find_target(spec, where, trust)
    name = spec["_target_"]
    arguments = {key: value for key, value in spec.items() if key not in ("_target_", "_partial_")}
    arguments = {
        key: build(value, f"{where}.{key}", trust, **context) if _is_spec(value) else value
        for key, value in arguments.items()
    }
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        raise UsageError(f"{where}._target_={name} does not say which options it takes; name another class") from None
    _check_arguments(where, name, arguments, parameters, context)
    arguments.update({key: value for key, value in context.items() if key in parameters})
    if spec.get("_partial_"):
        return functools.partial(target, **arguments) if arguments else target
    try:
        return target(**arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:  # torch's are RuntimeErrors
        raise UsageError(f"{where}: {brief(error) or 'it asks for more memory than there is'}") from error


def find_target(spec: Any, where: str, trust: Sequence[str] | None = None) -> Any:
    """The class or function at a section's `_target_`.  where: the section's name.  trust: see `build`."""
    name = spec.get("_target_") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise UsageError(f"{where}._target_={brief(name)} must be the dotted name of a class or function")
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
    return target


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
    for key, value in given.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        known = default if isinstance(default, (int, float, list, tuple)) else None
        check_numbers(f"{where}.{key}", value, Range(example=known))
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    free = [key for key in parameters if key not in context and key not in ("self", "params")]
    for key, value in given.items():
        if key not in free:
            raise UsageError(f"there is no key {where}.{key} ({name}); {nearest(key, free)}")
        default = parameters[key].default
        if not _fits(value, parameters[key].annotation, default):
            kind = _in_words(parameters[key].annotation, default)
            example = "" if default is inspect.Parameter.empty else f", e.g. {where}.{key}={default}"
            raise UsageError(f"{where}.{key}={brief(value)} must be {kind}{example}")


PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
NESTED = re.compile(r"(Sequence|Mapping)\[(?:str, )?(\w+)\]")


def _fits(value: Any, annotation: Any, default: Any) -> bool:
    """Whether a value is of the annotated plain type, sequence or mapping; of other annotations only numbers are told
    from text."""
    if isinstance(default, float) and isinstance(value, (str, bool)):
        return False
    names = annotation.split(" | ") if isinstance(annotation, str) else [getattr(annotation, "__name__", "")]
    if any(name not in PLAIN and not NESTED.fullmatch(name) for name in names):
        return True
    return any(_is(value, name) for name in names)


def _is(value: Any, name: str) -> bool:
    if name in PLAIN:
        return isinstance(value, PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
    found = NESTED.fullmatch(name)
    assert found is not None
    kind, inner = found.groups()
    if not isinstance(value, Mapping if kind == "Mapping" else (list, tuple)):
        return False
    values = value.values() if isinstance(value, Mapping) else value
    return inner == "Any" or all(_is(item, inner) for item in values)


def _in_words(annotation: Any, default: Any) -> str:
    """What an option must be, as a user would say it."""
    if not isinstance(annotation, str):
        return f"of type {type(default).__name__}"
    nested = NESTED.match(annotation)
    if nested is None:
        return f"of type {annotation}"
    return f"a list of {nested[2]}, [x, y]" if nested[1] == "Sequence" else "names with values, {name: value}"


def trusted(packages: Sequence[str]) -> tuple[str, ...]:
    """What a configuration out of a checkpoint may build: our own classes, and those of packages the user names."""
    return (*OURS, *(f"{package}." for package in packages))


def targets_in(config: Any) -> list[str]:
    """Every `_target_` that a configuration names."""
    if not isinstance(config, Mapping):
        return []
    own = [config["_target_"]] if "_target_" in config else []
    return own + [name for value in config.values() for name in targets_in(value)]


def build_separator(
    config: Mapping[str, Any], trust: Sequence[str] | None = None, stored: Mapping[str, Tensor] | None = None
) -> Separator:
    """The separator of a resolved training configuration, with fresh weights.

    stored: the weights that will be loaded; UsageError, before memory is allocated, where they do not fit.
    """
    from torch import nn

    from separate.separator import Separator
    from separate.sizes import check_size
    from separate.stft import STFT

    data = config["data"]
    check_sources(data["sources"])
    try:
        stft = STFT(**config["stft"])
    except ValueError as error:
        raise UsageError(f"stft: {error}") from None
    names = estimates_of(config)
    make = functools.partial(
        build,
        config["model"],
        "model",
        trust,
        sources=len(names),
        channels=data["channels"],
        bins=stft.bins,
        sample_rate=data["sample_rate"],
        interchangeable=data["interchangeable"],
    )
    if all(name.startswith(OURS) for name in map(str, targets_in(config["model"]))):
        check_size(make, data["sample_rate"], stft.hop, stored)
    network = make()
    if not isinstance(network, nn.Module) or not set(getattr(network, "provides", ())) & set(HEADS):
        raise UsageError(
            f"{config['model']['_target_']} is no network, or does not say what it provides; give it "
            f"provides = ('masks',) or ('waveforms',), see the README"
        )
    return Separator(
        network,
        stft,
        names,
        data["sample_rate"],
        data["channels"],
        data["interchangeable"],
        # a checkpoint may be older than these keys
        config.get("consistency", "none"),
        _rescale(config, trust),
        _input_level(config, network),
    )


def build_optimizer(
    config: Mapping[str, Any], parameters: Iterable[Tensor], mode: str, trust: Sequence[str] | None = None
) -> tuple[torch.optim.Optimizer, Any | None]:
    """The optimizer of a training configuration, and its schedule or None.

    mode: min or max, whichever is best of the monitored metric.
    """
    import torch

    optimizer = build(config["optimizer"], "optimizer", trust, params=parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise _not_a("optimizer", config["optimizer"], "torch.optim.Adam")
    if not config["scheduler"]:
        return optimizer, None
    scheduler = build(config["scheduler"], "scheduler", trust, optimizer=optimizer, mode=mode)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise _not_a("scheduler", config["scheduler"], "torch.optim.lr_scheduler.ReduceLROnPlateau")
    return optimizer, scheduler


def _not_a(where: str, spec: Mapping[str, Any], example: str) -> UsageError:
    return UsageError(f"{where}._target_={spec['_target_']} makes no {where}; name one, e.g. {example}")


def _rescale(config: Mapping[str, Any], trust: Sequence[str] | None) -> bool:
    """Whether estimates are rescaled; auto: where neither the loss nor consistency fixes their levels."""
    asked = config.get("rescale", False)
    if asked != "auto":
        return bool(asked)
    return config.get("consistency", "none") == "none" and make_loss(config, trust).keeps_levels is False


def _input_level(config: Mapping[str, Any], network: Any) -> str:
    """The input level of a network; auto: the one that the network asks for."""
    asked: str = config.get("input_level", "none")
    return getattr(network, "input_level", "none") if asked == "auto" else asked


def estimates_of(config: Mapping[str, Any]) -> list[str]:
    """The names of what the separator gives: the sources, or `outputs` estimates that are more than those."""
    sources, outputs = list(config["data"]["sources"]), config.get("outputs")
    if outputs is None:
        return sources
    if outputs < len(sources) or not config["data"]["interchangeable"]:
        raise UsageError(
            f"outputs={outputs} is for data with interchangeable sources, and at least {len(sources)} of them here; "
            f"leave it out, or set data.interchangeable=true"
        )
    return [f"estimate{number + 1}" for number in range(outputs)]


def make_loss(config: Mapping[str, Any], trust: Sequence[str] | None = None) -> Loss:
    """The loss of a resolved training configuration; UsageError for a target that it cannot work with."""
    import torch

    bins = config["stft"]["n_fft"] // 2 + 1
    silence = torch.zeros(1, config["data"]["channels"], bins, 2, dtype=torch.complex64)
    target = build(config["target"], "target", trust)
    try:
        made = target(silence.unsqueeze(1), silence)  # so that it refuses its options now
    except (ValueError, TypeError) as error:
        raise UsageError(f"target: {error}") from None
    if not isinstance(made, torch.Tensor):
        raise _not_a("target", config["target"], "separate.targets.tpsa")
    from separate.loss_builder import LossBuilder
    from separate.losses.base import Loss as Kind

    data = config["data"]
    loss: Loss = LossBuilder(target, data["interchangeable"], list(data["sources"]), trust).build(config["loss"])

    if not isinstance(loss, Kind):
        raise _not_a("loss", config["loss"], "separate.losses.WaveformLoss")
    return loss


def build_loss(config: Mapping[str, Any], separator: Separator, trust: Sequence[str] | None = None) -> Loss:
    """The loss as by `make_loss`; UsageError for a separator whose model it cannot work with."""
    loss = make_loss(config, trust)
    from separate.compatibility import check_pair

    check_pair(loss, separator.network)
    _check_number_of_estimates(loss, len(separator.sources), config)
    return loss


def _check_number_of_estimates(loss: Loss, estimates: int, config: Mapping[str, Any]) -> None:
    """As many as there are sources, or for mixtures of mixtures at least twice as many."""
    sources, name = len(config["data"]["sources"]), type(loss).__name__
    if not loss.without_sources and estimates != sources:
        raise UsageError(
            f"{name} compares {sources} sources with as many estimates, and outputs={estimates}; leave outputs out, "
            f"or use loss=mixit"
        )
    if loss.without_sources and not config["data"]["interchangeable"]:
        raise UsageError(
            f"{name} never learns which source is which; set data.interchangeable=true, or use loss=si_sdr"
        )
    if loss.without_sources and not 2 * sources <= estimates <= loss.most_estimates:
        raise UsageError(
            f"{name} adds two mixtures of {sources} sources each and needs {2 * sources} to {loss.most_estimates} "
            f"estimates for them, and there are {estimates}; set outputs={2 * sources}"
        )
