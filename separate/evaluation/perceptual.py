"""Perceptual metrics of other packages: PESQ, STOI, extended STOI, logWMSE and DNSMOS.

All take estimates (B, S, C, T), references (B, S, C, T), the mixture (B, C, T) and the sample rate in Hz, and return
{metric: (B, S)}, means over the channels; NaN where a metric is undefined, e.g. PESQ without speech.  They run on the
CPU.  UsageError if a package is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from separate.errors import UsageError
from separate.resampling import resample

EXTRA = "pip install 'separate[metrics]'"
WIDE, NARROW = 16000, 8000  # Hz
Score = Callable[[np.ndarray, np.ndarray], float]  # (estimate (T,), reference (T,))


def pesq(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """PESQ as MOS-LQO (ITU-T P.862.2): wide band at 16 kHz; narrow band at 8 kHz for recordings below 16 kHz."""
    package = _package("pesq", "pesq")
    wide = rate >= WIDE
    target = WIDE if wide else NARROW

    def score(estimate: np.ndarray, reference: np.ndarray) -> float:
        try:
            return float(package.pesq(target, reference, estimate, "wb" if wide else "nb"))
        except (package.NoUtterancesError, package.BufferTooShortError):
            return np.nan

    return {"pesq": _each(score, *(resample(x, rate, target) for x in (estimates, references)))}


def stoi(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """Short-time objective intelligibility, about 0 to 1 (Taal et al., 2011)."""
    return {"stoi": _stoi("stoi", estimates, references, rate, False)}


def estoi(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """Extended STOI, for fluctuating interference (Jensen and Taal, 2016)."""
    return {"estoi": _stoi("estoi", estimates, references, rate, True)}


def _stoi(name: str, estimates: Tensor, references: Tensor, rate: int, extended: bool) -> Tensor:
    package = _package(name, "pystoi")

    def score(estimate: np.ndarray, reference: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # too few frames with speech
            try:
                return float(package.stoi(reference, estimate, rate, extended=extended))
            except RuntimeWarning:
                return np.nan

    return _each(score, estimates, references)


def log_wmse(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """Logarithm of the mean squared error after a filter of the ear's sensitivity, on a scale like that of SDR.

    Relative to the mixture, so that a silent reference has a score too; by the package torch-log-wmse.
    """
    metric = _package("log_wmse", "torch_log_wmse").LogWMSE(sample_rate=rate, reduction="none")
    sources = [
        metric(mixture, *(x[:, s].unsqueeze(2) for x in (estimates, references))) for s in range(references.shape[1])
    ]
    return {"log_wmse": torch.stack(sources, dim=1)}


def dnsmos(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """Mean opinion scores that a network gives to the estimates alone, at 16 kHz (DNSMOS P.835, Reddy et al. 2022)."""
    package = _package("dnsmos", "speechmos.dnsmos")
    audio = resample(estimates, rate, WIDE)
    audio = audio / audio.abs().amax(-1, keepdim=True).clamp_min(1.0)  # the package refuses samples beyond 1
    names = {"dnsmos": "ovrl_mos", "dnsmos_speech": "sig_mos", "dnsmos_background": "bak_mos"}
    found = [package.run(one.numpy(), WIDE) for one in audio.flatten(0, 2).cpu()]
    means = torch.tensor([[float(scores[key]) for key in names.values()] for scores in found], dtype=torch.float64)
    means = means.unflatten(0, audio.shape[:3]).mean(2)
    return {name: means[..., n] for n, name in enumerate(names)}


def _each(score: Score, estimates: Tensor, references: Tensor) -> Tensor:
    """The mean score over the channels, (B, S, C, T) twice -> (B, S); NaN for a silent channel."""
    pairs = zip(*(x.flatten(0, 2).cpu().numpy() for x in (estimates, references)), strict=True)
    found = [score(one, other) if one.any() and other.any() else np.nan for one, other in pairs]
    return torch.tensor(found, dtype=torch.float64).unflatten(0, estimates.shape[:3]).mean(2)


def _package(metric: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"metrics=[{metric}] needs the package {error.name or module}; install it with {EXTRA}"
        ) from None
