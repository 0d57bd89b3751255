"""Preparation of a separator for fine-tuning: initial weights, frozen parameters, low-rank adapters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn

from separate.config import LoraConfig
from separate.errors import UsageError
from separate.separator import Separator
from separate.training.finetuning.initialisation import initialise
from separate.training.finetuning.lora import LowRank, adapt, adaptable, weights_of
from separate.training.parameters import matching
from separate.validation import typed

log = logging.getLogger(__name__)


def fine_tune(separator: Separator, config: Mapping[str, Any], resumed: bool) -> None:
    """Apply `init`, `trainer.freeze` and `lora` to a separator before training.

    resumed: whether the weights come from the run's own checkpoint, so that `init` is not read.  UsageError for a
    pattern without a match, for a network without trainable parameters, and for frozen weights with random values.
    """
    network, source = separator.network, config.get("init")
    new = initialise(separator, config) if source and not resumed else set()
    options = typed(LoraConfig, config.get("lora", {}), "lora.")
    frozen, layers = _choose(network, config["trainer"].get("freeze"), options)
    if not frozen and not layers:
        return
    _check_new(network, new & frozen, new, bool(layers))
    parameters = dict(network.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    if layers:
        assert options.rank is not None
        adapt(network, layers, options.rank, options.alpha)
        if not source:
            log.warning("lora.rank=%d adapts a network with random weights; init=RUN loads trained ones", options.rank)
    trained, total = _count(network)
    if not trained:
        raise UsageError("trainer.freeze freezes every parameter, so there is nothing to train; leave some out")
    log.info(
        "%s of %s parameters are trained%s; %d of %d tensors of the network are frozen",
        f"{trained:,}",
        f"{total:,}",
        f", with adapters of rank {options.rank} in {len(layers)} layers" * bool(layers),
        len(frozen),
        len(parameters),
    )


def _choose(network: nn.Module, patterns: Sequence[str] | None, options: LoraConfig) -> tuple[set[str], list[str]]:
    """The names of the parameters to freeze and of the layers to adapt.  patterns: `trainer.freeze`."""
    names = [name for name, _ in network.named_parameters()]
    frozen = set(chain(*matching(names, patterns or [], "trainer.freeze").values()))
    if options.rank is None:
        return frozen, []
    layers = list(dict.fromkeys(chain(*matching(adaptable(network), options.layers, "lora.layers").values())))
    if not layers:
        raise UsageError(f"lora.rank={options.rank} has no layers to adapt; set lora.layers=['*']")
    adapted = {
        f"{layer}.{weight}".lstrip(".") for layer in layers for weight in weights_of(network.get_submodule(layer))
    }
    return adapted | (set(names) if patterns is None else frozen), layers


def train_mode(separator: Separator) -> None:
    """`separator.train()`, except for the running statistics of frozen modules.

    A module with buffers (batch normalisation) stays in evaluation mode if it, or a module that contains it, has only
    frozen parameters; adapters do not count.  Dropout stays active, because cuDNN needs recurrent layers in training
    mode.
    """
    separator.train()
    for module in separator.network.modules():
        owners = (part for part in module.modules() if not isinstance(part, LowRank))
        parameters = [parameter for part in owners for parameter in part.parameters(recurse=False)]
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for part in module.modules():
                part.training = part.training and not any(True for _ in part.buffers(recurse=False))


def _count(network: nn.Module) -> tuple[int, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _check_new(network: nn.Module, random: set[str], new: set[str], adapted: bool) -> None:
    """UsageError if there are `random` weights: frozen, but new.  new: all weights that `init` did not load."""
    if not random:
        return
    names = [name for name, _ in network.named_parameters()]
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    kept = [f"{part}.*" for part in parts if not any(f"{name}.".startswith(f"{part}.") for name in new)]
    patterns = f"[{','.join(kept)}]"
    raise UsageError(
        f"{min(random)} is new: the checkpoint of init does not hold it in this shape, so freezing would keep its "
        f"random values; train it, e.g. with trainer.freeze={patterns}{f' lora.layers={patterns}' * adapted}"
    )
