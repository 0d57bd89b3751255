"""The hidden weight matrices of a network, for optimizers that treat matrices in their own way (Muon)."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from separate.data.batch import Batch
from separate.errors import UsageError
from separate.separator import Separator
from separate.training.parameters import is_weight
from separate.validation import brief

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}  # matrices stacked in a weight of a recurrent layer


def hidden_matrices(separator: Separator) -> dict[Tensor, int]:
    """The trainable weight matrices between first and last layers, and how many matrices are stacked in each.

    Matrices: the weights of linear layers, of 1x1 convolutions, of the gates of recurrent layers, and of projections in
    attention.  A first layer has no other layer between the input and itself, a last layer none between itself and the
    output.  To find them, a copy of the network runs on a quarter of a second of audio on the meta device, which has no
    values.
    """
    network = deepcopy(separator.network).to("meta").eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_weight(network, name))
    try:
        ends = _ends(network, _silence(separator).to("meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"the hidden matrices of {type(network).__name__} are unknown, because it does not run on torch's meta "
            f"device ({brief(error)}); use optimizer=adamw"
        ) from error
    originals, found = dict(separator.network.named_parameters()), {}
    for place, module in network.named_modules():
        for own, stacked in _matrices(module).items() if module in ends.run else ():
            name = f"{place}.{own}".lstrip(".")
            sees_input = module in ends.first and not (isinstance(module, nn.RNNBase) and "ih_l0" not in own)
            in_last = network.get_parameter(name) in ends.last
            if name in originals and originals[name].requires_grad and not sees_input and not in_last:
                found[originals[name]] = stacked
    return found


def _matrices(module: nn.Module) -> dict[str, int]:
    """The weight matrices of a layer by name, and how many matrices are stacked in each along the first dimension."""
    if isinstance(module, nn.RNNBase):
        names = [name for name, _ in module.named_parameters() if name.startswith("weight")]
        return {name: 1 if "_hr_" in name else GATES.get(type(module), 1) for name in names}
    if isinstance(module, nn.MultiheadAttention):
        return {"out_proj.weight": 1, **({} if module.in_proj_weight is None else {"in_proj_weight": 3})}
    convolution = isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1 and set(module.kernel_size) == {1}
    return {"weight": 1} if isinstance(module, nn.Linear) or convolution else {}


@dataclass
class _Ends:
    """run: layers that were called; first: first layers; last: the weights of last layers."""

    run: set[nn.Module] = field(default_factory=set)
    first: set[nn.Module] = field(default_factory=set)
    last: set[Tensor] = field(default_factory=set)


def _ends(network: nn.Module, signal: Tensor) -> _Ends:
    """The ends of a network in which only weights require gradients.

    The inputs of each layer are detached, so that the graph of the output leads to the weights of last layers only.
    """
    ends = _Ends()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        ends.run.add(module)
        if not any(leaf.requires_grad for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)):
            ends.first.add(module)
        return tree_map_only(Tensor, Tensor.detach, (args, kwargs))

    for module in network.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.register_forward_pre_hook(enter, with_kwargs=True)
    with torch.enable_grad():
        output = network(signal)
    ends.last = _leaves(leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return ends


def _leaves(nodes: Iterable[Any]) -> set[Tensor]:
    """The parameters that an autograd graph reaches from these nodes."""
    waiting, seen, found = [node for node in nodes if node is not None], set(), set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(node.variable)
            waiting.extend(following for following, _ in node.next_functions if following is not None)
    return found


def _silence(separator: Separator) -> Tensor:
    """Silence as input of the network: a mixture (1, C, T), or its spectrogram (1, C, F, N).

    A quarter of a second, and at least two windows; on the meta device recurrent layers take time for each frame.
    """
    samples = max(separator.sample_rate // 4, 2 * separator.stft.n_fft)
    mixture = torch.zeros(1, separator.channels, samples, device=separator.device)
    return (
        mixture if "waveforms" in separator.network.provides else Batch.of_mixture(mixture, separator.stft).spectrogram
    )
