"""The summary of a network: layers, shapes, parameters, multiply-accumulates, valid length, receptive field."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from separate.data.batch import Batch
from separate.separator import Separator

SPANS = (1.0, 4.0)  # seconds on each side in which the receptive field is measured


def summary(separator: Separator) -> str:
    """A table of the layers with their output shapes for one second of audio, and totals."""
    separator = deepcopy(separator).cpu().eval()
    rows = layers(separator)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {parameters:>{widths[3]}}"
        for name, kind, shape, parameters in rows
    ]
    back, ahead = map(_duration, receptive_field(separator))
    return "\n".join(
        [
            *lines,
            "",
            f"parameters             {_parameters(separator):,}",
            f"multiply-accumulates   {macs(separator) / 1e6:,.1f} M for one second of audio, without the STFT",
            f"valid length           {_valid_length(separator)}",
            f"past context           {back}",
            f"future context         {ahead}",
        ]
    )


def layers(separator: Separator) -> list[tuple[str, str, str, str]]:
    """(name, class, output shape, parameters) of each layer that runs, in the order of their first run."""
    shapes: dict[str, str] = {}
    modules = dict(separator.network.named_modules())
    names = {module: name for name, module in modules.items() if name}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        shapes.setdefault(names[module], _shape(output))

    hooks = [module.register_forward_hook(record) for module in names]
    with torch.no_grad():
        separator.separate(_noise(separator, separator.sample_rate))
    for hook in hooks:
        hook.remove()
    parents = {name for name in shapes if any(other.startswith(f"{name}.") for other in shapes)}
    return [("layer", "class", "output shape", "parameters")] + [
        (name, type(modules[name]).__name__, shape, f"{_parameters(modules[name]):,}")
        for name, shape in shapes.items()
        if name not in parents
    ]


def macs(separator: Separator) -> float:
    """Multiply-accumulates of the network for one second of audio: its convolutions and matrix products."""
    signal, counter = _input(separator, separator.sample_rate), FlopCounterMode(display=False)
    with torch.no_grad(), warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")  # mkldnn.flags warns of missing hardware
        with torch.backends.mkldnn.flags(enabled=False):  # the counter does not know its recurrent layers
            separator.network(signal)
    return counter.get_total_flops() / 2


def receptive_field(separator: Separator) -> tuple[float, float]:
    """Seconds before and after an output sample that it depends on; infinite for the whole recording.

    Measured by the spread of a NaN in the middle of the input, plus the window of the STFT.
    """
    network, rate, stft = deepcopy(separator.network).eval(), separator.sample_rate, separator.stft
    unit, window = (1, 0) if _takes_waveforms(separator) else (stft.hop, stft.n_fft)  # samples
    for seconds in SPANS:
        back, ahead = _reach(network, _input(separator, round(2 * seconds * rate)))
        if max(back, ahead) < torch.inf:
            break
    return (back * unit + window) / rate, (ahead * unit + window) / rate


@torch.no_grad()
def _reach(network: Any, signal: Tensor) -> tuple[float, float]:
    """The number of input steps before and after an output that it depends on; infinite if it depends on all of them.

    Networks compute periods of `valid_length` steps together, so the first and the last step of a period are tested.
    """
    steps = signal.shape[-1]
    period = min(network.valid_length(1), steps // 2) if hasattr(network, "valid_length") else 1
    start = steps // 2 // period * period
    back = ahead = 0.0
    for step in {start, min(start + period, steps) - 1}:
        marked = signal.clone()
        marked[..., step] = torch.nan
        heads = network(marked)
        output = heads["embeddings"].movedim(2, -1) if "embeddings" in heads else next(iter(heads.values()))
        reached = output.isnan().flatten(0, -2).any(0).nonzero().flatten().tolist() or [step]
        back = max(back, torch.inf if reached[-1] == output.shape[-1] - 1 else reached[-1] - step)
        ahead = max(ahead, torch.inf if reached[0] == 0 else step - reached[0])
    return back, ahead


def _takes_waveforms(separator: Separator) -> bool:
    return "waveforms" in separator.network.provides


def _noise(separator: Separator, length: int) -> Batch:
    """A batch of one mixture of `length` samples."""
    generator = torch.Generator().manual_seed(0)
    return Batch.of_mixture(torch.randn(1, separator.channels, length, generator=generator), separator.stft)


def _input(separator: Separator, length: int) -> Tensor:
    """The input of the network for `length` samples of noise: (1, C, T), or (1, C, F, N) complex."""
    batch = _noise(separator, length)
    return batch.mixture if _takes_waveforms(separator) else batch.spectrogram


def _valid_length(separator: Separator) -> str:
    """The number of samples or frames that the network computes for one second."""
    if not hasattr(separator.network, "valid_length"):
        return "not reported by the network"
    unit = "samples" if _takes_waveforms(separator) else "frames"
    length = _input(separator, separator.sample_rate).shape[-1]
    return f"{separator.network.valid_length(length):,} {unit}, for {length:,} of one second"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(output: Any) -> str:
    if isinstance(output, dict):
        return ", ".join(f"{name} {_shape(value)}" for name, value in output.items())
    if isinstance(output, tuple):
        output = output[0]
    return " x ".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__


def _duration(seconds: float) -> str:
    return "the whole recording" if seconds == torch.inf else f"{1000 * seconds:.1f} ms"
