"""Low-rank adaptation of linear layers (LoRA, Hu et al., 2021), merged into the weights when they are saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W + alpha / rank B A for a weight W, (outputs, inputs) or (outputs, inputs, 1 ...).

    A, (rank, inputs), starts at random values and B, (outputs, rank), at 0, so that W is unchanged at first.  rank:
    at most the smaller dimension of W.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        rank = min(rank, outputs, inputs)
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as in the authors' code

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # in float32, as the merged weight
            return weight + self.scale * (self.b @ self.a).view_as(weight)


def weights_of(layer: nn.Module) -> list[str]:
    """The names of the weight matrices of a layer: a linear or recurrent layer, or a 1x1 convolution; else none."""
    if isinstance(layer, nn.RNNBase):
        names = [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")]
    elif isinstance(layer, nn.Linear):
        names = ["weight"]
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        names = ["weight"] if set(layer.kernel_size) == {1} and layer.groups == 1 else []
    else:
        return []
    own = dict(layer.named_parameters(recurse=False))  # no weights that another parametrization computes
    return [name for name in names if name in own]


def adaptable(network: nn.Module) -> list[str]:
    """The names of the layers that `adapt` can adapt."""
    return [name for name, layer in network.named_modules() if weights_of(layer)]


def adapt(network: nn.Module, layers: Iterable[str], rank: int, alpha: float) -> None:
    """Add adapters to the weights of these layers, and freeze the weights.

    Autograd computes the gradient of each whole weight before those of A and B.
    """
    for name in layers:
        layer = network.get_submodule(name)
        for weight in weights_of(layer):
            original = getattr(layer, weight).requires_grad_(False)
            parametrize.register_parametrization(layer, weight, LowRank(original, rank, alpha))


def merged_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the module with the adapters merged into the weights."""
    state = module.state_dict()
    for name, adapters in _adapted(module):
        for key in adapters.state_dict():
            del state[f"{_inner(name)}.{key}"]
        layer, _, weight = name.rpartition(".")
        state[name] = getattr(module.get_submodule(layer), weight).detach()
    return state


def adapter_weights(module: nn.Module) -> dict[str, Tensor]:
    """The adapters and the original weights, which `merged_weights` leaves out."""
    return {
        f"{_inner(name)}.{key}": value
        for name, adapters in _adapted(module)
        for key, value in adapters.state_dict().items()
    }


def load_weights(module: nn.Module, merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> None:
    """Load the results of `merged_weights` and `adapter_weights`.  RuntimeError for other names or shapes."""
    adapted = {name for name, _ in _adapted(module)}
    rest = {name: value for name, value in merged.items() if name not in adapted}
    module.load_state_dict({**rest, **adapters})


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each adapted weight: its name without adapters, and torch's ParametrizationList of the weight and its adapter."""
    for name, layer in module.named_modules():
        holders: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for weight, holder in holders.items():
            if isinstance(holder[0], LowRank):
                yield f"{name}.{weight}".lstrip("."), holder


def _inner(name: str) -> str:
    """The name of the ParametrizationList of a weight in the adapted module."""
    layer, _, weight = name.rpartition(".")
    return f"{layer}.parametrizations.{weight}".lstrip(".")
