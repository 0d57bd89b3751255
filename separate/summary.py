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

SPANS = (1.0, 4.0)  # seconds on each side that are searched for the receptive field


def summary(separator: Separator) -> str:
    """A table of the layers with their output shapes for one second of audio, and totals."""
    separator = deepcopy(separator).cpu().eval()
    rows = layers(separator)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}  {parameters:>{widths[3]}}"
        for name, kind, shape, parameters in rows
    ]
    total = sum(p.numel() for p in separator.parameters())
    back, ahead = (_span(seconds) for seconds in receptive_field(separator))
    return "\n".join(
        [
            *lines,
            "",
            f"parameters             {total:,}",
            f"multiply-accumulates   {macs(separator) / 1e6:,.1f} M for one second of audio, without the STFT",
            f"without padding        {_valid(separator)}",
            f"looks back             {back}",
            f"looks ahead (latency)  {ahead}",
        ]
    )


def layers(separator: Separator) -> list[tuple[str, str, str, str]]:
    """(name, class, output shape, parameters) of each layer that runs, in the order of their first run."""
    shapes: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes.setdefault(name, _shape(output))

        return hook

    network = separator.network
    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    with torch.no_grad():
        separator.separate(_second(separator))
    for hook in hooks:
        hook.remove()
    modules = dict(network.named_modules())
    whole = [name for name in shapes if any(other.startswith(f"{name}.") for other in shapes)]
    return [("layer", "class", "shape after it", "parameters")] + [
        (name, type(modules[name]).__name__, shape, f"{sum(p.numel() for p in modules[name].parameters()):,}")
        for name, shape in shapes.items()
        if name not in whole
    ]


def macs(separator: Separator) -> float:
    """Multiply-accumulates of the network for one second of audio: its convolutions and matrix products."""
    batch = _second(separator)
    takes_waveforms = "waveforms" in separator.network.provides
    signal = batch.mixture if takes_waveforms else batch.spectrogram
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")  # mkldnn.flags warns of missing hardware
        with torch.backends.mkldnn.flags(enabled=False):  # the counter does not know its recurrent layers
            separator.network(signal)
    return counter.get_total_flops() / 2


def receptive_field(separator: Separator) -> tuple[float, float]:
    """Seconds before and after an output sample that it depends on; infinite for the whole recording.

    Measured by how far a NaN in the middle of the input spreads, plus the STFT's window.
    """
    network, rate, stft = deepcopy(separator.network).eval(), separator.sample_rate, separator.stft
    waveforms = "waveforms" in network.provides
    unit, window = (1, 0) if waveforms else (stft.hop, stft.n_fft)  # samples
    for seconds in SPANS:
        signal = _second(separator, round(2 * seconds * rate)).mixture
        back, ahead = _reach(network, signal if waveforms else stft(signal))
        if max(back, ahead) < torch.inf:
            break
    return (back * unit + window) / rate, (ahead * unit + window) / rate


@torch.no_grad()
def _reach(network: Any, signal: Tensor) -> tuple[float, float]:
    """The number of input steps before and after an output that it depends on; infinite if these are all steps.

    Networks compute periods of `valid_length` steps together, so the first and the last step of a period are tried.
    """
    steps = signal.shape[-1]
    period = min(network.valid_length(1), steps // 2) if hasattr(network, "valid_length") else 1
    start = steps // 2 // period * period
    back = ahead = 0.0
    for step in {start, min(start + period, steps) - 1}:
        spoilt = signal.clone()
        spoilt[..., step] = torch.nan
        heads = network(spoilt)
        output = heads["embeddings"].movedim(2, -1) if "embeddings" in heads else next(iter(heads.values()))
        reached = output.isnan().flatten(0, -2).any(0).nonzero().flatten().tolist() or [step]
        back = max(back, torch.inf if reached[-1] == output.shape[-1] - 1 else reached[-1] - step)
        ahead = max(ahead, torch.inf if reached[0] == 0 else step - reached[0])
    return back, ahead


def _second(separator: Separator, length: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(1, separator.channels, length or separator.sample_rate, generator=generator)
    return Batch.of_mixture(mixture, separator.stft)


def _valid(separator: Separator) -> str:
    """The number of samples or frames that the network computes for one second."""
    batch = _second(separator)
    waveforms = "waveforms" in separator.network.provides
    length, unit = (batch.mixture.shape[-1], "samples") if waveforms else (batch.spectrogram.shape[-1], "frames")
    if not hasattr(separator.network, "valid_length"):
        return "the network does not say"
    return f"{separator.network.valid_length(length):,} {unit}, for {length:,} of one second"


def _shape(output: Any) -> str:
    if isinstance(output, dict):
        return ", ".join(f"{name} {_shape(value)}" for name, value in output.items())
    if isinstance(output, tuple):
        output = output[0]
    return " x ".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__


def _span(seconds: float) -> str:
    return "the whole recording" if seconds == torch.inf else f"{1000 * seconds:.1f} ms"
