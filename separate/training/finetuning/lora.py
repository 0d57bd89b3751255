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

    A, (rank, inputs), starts random and B, (outputs, rank), at 0, so that W is unchanged at first.  rank: reduced to
    the smaller side of W.
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
        with torch.autocast(weight.device.type, enabled=False):  # as precise as the merged weight
            return weight + self.scale * (self.b @ self.a).view_as(weight)


def weights_of(layer: nn.Module) -> list[str]:
    """The names of the weights of a layer that are matrices: of linear and recurrent layers and 1x1 convolutions."""
    if isinstance(layer, nn.RNNBase):
        names = [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")]
    elif isinstance(layer, nn.Linear):
        names = ["weight"]
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        names = ["weight"] if set(layer.kernel_size) == {1} and layer.groups == 1 else []
    else:
        return []
    own = dict(layer.named_parameters(recurse=False))  # without those that another parametrization computes
    return [name for name in names if name in own]


def adaptable(network: nn.Module) -> list[str]:
    """The names of the layers that `adapt` can adapt."""
    return [name for name, layer in network.named_modules() if weights_of(layer)]


def adapt(network: nn.Module, layers: Iterable[str], rank: int, alpha: float) -> None:
    """Add adapters to the weights of these layers, and freeze the weights.

    The gradient of each weight is computed as a whole, and then projected onto A and B.
    """
    for name in layers:
        layer = network.get_submodule(name)
        for weight in weights_of(layer):
            original = getattr(layer, weight).requires_grad_(False)
            parametrize.register_parametrization(layer, weight, LowRank(original, rank, alpha))


def merged_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module without adapters that computes the same."""
    state = module.state_dict()
    for name, adapters in _adapted(module):
        for key in adapters.state_dict():
            del state[f"{_inner(name)}.{key}"]
        layer, _, weight = name.rpartition(".")
        state[name] = getattr(module.get_submodule(layer), weight).detach()
    return state


def adapter_weights(module: nn.Module) -> dict[str, Tensor]:
    """What `merged_weights` leaves out: the adapters, and the weights that they adapt."""
    return {
        f"{_inner(name)}.{key}": value
        for name, adapters in _adapted(module)
        for key, value in adapters.state_dict().items()
    }


def load_weights(module: nn.Module, merged: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> None:
    """Load what `merged_weights` and `adapter_weights` returned.  RuntimeError for names or shapes that differ."""
    adapted = {name for name, _ in _adapted(module)}
    rest = {name: value for name, value in merged.items() if name not in adapted}
    module.load_state_dict({**rest, **adapters})


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The adapted weights: name in the module without adapters, and torch's holder of the weight and its adapter."""
    for name, layer in module.named_modules():
        holders: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for weight, holder in holders.items():
            if isinstance(holder[0], LowRank):
                yield f"{name}.{weight}".lstrip("."), holder


def _inner(name: str) -> str:
    """The name, in the adapted module, of the holder of a weight."""
    layer, _, weight = name.rpartition(".")
    return f"{layer}.parametrizations.{weight}".lstrip(".")
