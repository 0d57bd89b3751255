"""The parts of a training from its configuration: separator, loss, optimizer and scheduler."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from separate.config import check_sources
from separate.errors import UsageError
from separate.instantiate import OURS, build, find_target, signature, targets_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from separate.losses import Loss
    from separate.separator import Separator

HEADS = ("masks", "complex_masks", "waveforms", "embeddings")


def build_separator(
    config: Mapping[str, Any], trust: Sequence[str] | None = None, stored: Mapping[str, Tensor] | None = None
) -> Separator:
    """The separator of a resolved training configuration, with fresh weights.

    stored: the weights to load later; UsageError, before any allocation of memory, if they do not fit.
    """
    from torch import nn

    from separate.separator import Levels, Separator, Signals
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
    signals = Signals(names, data["sample_rate"], data["channels"], data["interchangeable"])
    consistency = config.get("consistency", "none")  # a checkpoint may be older than this key
    levels = Levels(consistency, _rescale(config, trust), _input_level(config, network))
    return Separator(network, stft, signals, levels)


def build_optimizer(
    config: Mapping[str, Any], separator: Separator, trust: Sequence[str] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a training configuration, for the trainable parameters of the network.

    A class with the parameter `hidden_matrices` gets the result of `separate.training.matrices.hidden_matrices`.
    """
    import torch

    from separate.training.matrices import hidden_matrices
    from separate.training.parameters import GroupOptions, parameter_groups

    spec, trainer = config["optimizer"], config["trainer"]
    takes = signature(find_target(spec, "optimizer", trust))
    values = {name: spec.get(name, takes[name].default if name in takes else None) for name in ("lr", "weight_decay")}
    numbers = {name: value if isinstance(value, (int, float)) else None for name, value in values.items()}
    options = GroupOptions(**numbers, decay=trainer.get("decay", "weights"), rates=trainer.get("rates") or {})
    context: dict[str, Any] = {"params": parameter_groups(separator.network, options)}
    if "hidden_matrices" in takes:
        context["hidden_matrices"] = hidden_matrices(separator)
    optimizer = build(spec, "optimizer", trust, **context)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise _not_a("optimizer", spec, "torch.optim.Adam")
    return optimizer


def build_schedule(
    config: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    mode: str,
    total_steps: int,
    trust: Sequence[str] | None = None,
) -> Any | None:
    """The learning rate schedule of a training configuration, or None.

    mode: min or max, the direction in which the monitored metric improves.  total_steps: of the whole training.
    """
    import torch

    from separate.training.schedules import check_interval

    spec = config["scheduler"]
    if not spec:
        return None
    fixed = has_fixed_end(spec, trust)
    context = {"total_steps": total_steps} if fixed else {}
    schedule = build(spec, "scheduler", trust, optimizer=optimizer, mode=mode, **context)
    if not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        raise _not_a("scheduler", spec, "torch.optim.lr_scheduler.ReduceLROnPlateau")
    if fixed and not hasattr(schedule, "interval"):
        schedule.interval = "step"  # type: ignore[attr-defined]
    check_interval(schedule)
    return schedule


def check_schedule(config: Mapping[str, Any], trust: Sequence[str] | None = None) -> None:
    """UsageError for unknown keys and mistyped values of the schedule; builds nothing."""
    if spec := config["scheduler"]:
        context = {"total_steps": 1} if has_fixed_end(spec, trust) else {}
        build({**spec, "_partial_": True}, "scheduler", trust, optimizer=None, mode="min", **context)


def has_fixed_end(spec: Mapping[str, Any], trust: Sequence[str] | None = None) -> bool:
    """Whether a schedule needs the number of steps of the whole training, so that its end is fixed."""
    return "total_steps" in signature(find_target(spec, "scheduler", trust)) and "total_steps" not in spec


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
    """The loss of a resolved training configuration; UsageError for a target that does not fit the loss."""
    import torch

    bins = config["stft"]["n_fft"] // 2 + 1
    silence = torch.zeros(1, config["data"]["channels"], bins, 2, dtype=torch.complex64)
    target = build(config["target"], "target", trust)
    try:
        made = target(silence.unsqueeze(1), silence)  # to check the options before the data is opened
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
    """The loss as from `make_loss`; UsageError for a network or a number of estimates that does not fit it."""
    loss = make_loss(config, trust)
    from separate.compatibility import check_pair

    check_pair(loss, separator.network)
    _check_number_of_estimates(loss, len(separator.sources), config)
    return loss


def _check_number_of_estimates(loss: Loss, estimates: int, config: Mapping[str, Any]) -> None:
    """UsageError unless there is one estimate per source; for mixtures of mixtures at least two per source."""
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
            f"estimates, but there are {estimates}; set outputs={2 * sources}"
        )
