"""Build the parts that a configuration names by `_target_`; a checkpoint may build only trusted classes."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from separate.config import check_sources
from separate.errors import UsageError, nearest
from separate.validation import Option, Range, brief, check_finite, fits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from separate.losses import Loss
    from separate.separator import Separator

HEADS = ("masks", "complex_masks", "waveforms", "embeddings")
OURS = {  # the package of each section from which a checkpoint may build
    "model": "separate.models.",
    "loss": "separate.losses.",
    "target": "separate.targets.",
    "data": "separate.data.layouts.",
    "augment": "separate.data.mixing.",
}


def build(spec: Any, where: str, trust: Sequence[str] | None = None, **context: Any) -> Any:
    """Call the class or function that `spec` names by `_target_` with the other keys of `spec`.

    spec: `{_target_: package.module.Name, key: value, ...}`; values may be specs themselves.  `_partial_: true` gives
    the function with its arguments bound, to be called later.  where: the name of the section, for messages.
    context: values that are not configured (sizes, the target of a loss); passed if the callable has such a parameter.
    trust: the package prefixes that may be built besides the section's own in `OURS`; None trusts all.
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
            f"{where}._target_={name} comes from a package that is not trusted; if you trust the file it stands in, "
            f"allow it with --trust {package} (in Python: trust=['{package}'])"
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
    imported = not f"{getattr(target, '__module__', '')}.".startswith(own)  # our modules import others, os say
    if not callable(target) or (trust is not None and name.startswith(own) and imported):
        raise UsageError(f"{where}._target_={name} is not a class or function defined there; name one")
    return target


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
    """The type of a parameter, and its default as the example.  Types that pydantic cannot check are Any."""
    empty, default = parameter.empty, parameter.default
    annotation = parameter.annotation
    if annotation is empty:
        annotation = float if isinstance(default, float) else Any
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    example = Range(example=None if default is empty else default)
    try:
        hint = typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)["value"]
        fits(None, hint)  # pydantic refuses the type now
    except Exception:  # names that only type checkers import, types that isinstance refuses ...
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


def build_separator(
    config: Mapping[str, Any], trust: Sequence[str] | None = None, stored: Mapping[str, Tensor] | None = None
) -> Separator:
    """The separator of a resolved training configuration, with fresh weights.

    stored: the weights that will be loaded; UsageError before memory is allocated if they do not fit.
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
    if all(name.startswith(OURS["model"]) for name in map(str, targets_in(config["model"]))):
        check_size(make, data["sample_rate"], stft.hop, stored)
    network = make()
    if not isinstance(network, nn.Module) or not set(getattr(network, "provides", ())) & set(HEADS):
        raise UsageError(
            f"{config['model']['_target_']} is not a network, or does not declare its heads; give it "
            f"provides = ('masks',) or ('waveforms',), see separate/models/README.md"
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

    mode: min or max, the direction in which the monitored metric improves.
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
    return UsageError(f"{where}._target_={spec['_target_']} does not make a {where}; name one, e.g. {example}")


def _rescale(config: Mapping[str, Any], trust: Sequence[str] | None) -> bool:
    """Whether to rescale estimates; auto: if neither the loss nor consistency fixes their levels."""
    asked = config.get("rescale", False)
    if asked != "auto":
        return bool(asked)
    return config.get("consistency", "none") == "none" and make_loss(config, trust).keeps_levels is False


def _input_level(config: Mapping[str, Any], network: Any) -> str:
    """The input level of a network; auto: its own `input_level`."""
    asked: str = config.get("input_level", "none")
    return getattr(network, "input_level", "none") if asked == "auto" else asked


def estimates_of(config: Mapping[str, Any]) -> list[str]:
    """The names of the estimates: the sources, or estimate1, estimate2 ... if `outputs` is set."""
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
    """The loss of a resolved training configuration; UsageError for a target that it cannot use."""
    import torch

    bins = config["stft"]["n_fft"] // 2 + 1
    silence = torch.zeros(1, config["data"]["channels"], bins, 2, dtype=torch.complex64)
    target = build(config["target"], "target", trust)
    try:
        made = target(silence.unsqueeze(1), silence)  # to check its options now
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
    """The loss as by `make_loss`; UsageError for a separator that it cannot train."""
    loss = make_loss(config, trust)
    from separate.compatibility import check_pair

    check_pair(loss, separator.network)
    _check_number_of_estimates(loss, len(separator.sources), config)
    return loss


def _check_number_of_estimates(loss: Loss, estimates: int, config: Mapping[str, Any]) -> None:
    """UsageError unless there is one estimate per source, or for mixtures of mixtures at least two."""
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
