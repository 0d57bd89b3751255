#!/usr/bin/env python3
"""Time and memory of the most frequent operations, compared with other libraries.

All candidates of a case run in one process, in turns; the result is the median over the rounds.  Ratios are the time
of a candidate over that of separate: above 1, separate is faster.  Memory is the peak of a call beyond the memory
before it, in a process for each candidate (Linux only).  Needs the packages of the extra `test`.

    python scripts/bench.py                          all cases: a table, and bench.json
    python scripts/bench.py kmeans pit --rounds 15
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_common import in_turns, megabytes, options, seconds
from torch import Tensor

Candidates = dict[str, Callable[[], object]]


def conv_tasnet() -> Candidates:
    """training step, Conv-TasNet at the paper's size, 2 x 4 s at 8 kHz"""
    import torchaudio

    from separate.models.conv_tasnet import ConvTasNet, state_from_torchaudio

    theirs = torchaudio.models.ConvTasNet(2)
    ours = ConvTasNet(2, 1)
    ours.load_state_dict(state_from_torchaudio(theirs.state_dict()))
    causal = ConvTasNet(2, 1, causal=True, norm="cumulative")
    mixture, sources = torch.randn(2, 1, 32000), torch.randn(2, 2, 32000)
    return {
        "separate": _step(ours, lambda: ours(mixture)["waveforms"].squeeze(2), sources),
        "torchaudio": _step(theirs, lambda: theirs(mixture), sources),
        "separate, causal": _step(causal, lambda: causal(mixture)["waveforms"].squeeze(2), sources),
    }


def open_unmix() -> Candidates:
    """training step, Open-Unmix for one stem, 4 x 6 s stereo at 44.1 kHz"""
    import openunmix.model

    from separate.models.open_unmix import OpenUnmix

    theirs = openunmix.model.OpenUnmix(2049, 2, max_bin=1487)
    ours = OpenUnmix(1, 2, 2049, 44100)
    spectrogram = torch.randn(4, 2, 2049, 260, dtype=torch.complex64)
    target = torch.rand(4, 2, 2049, 260)
    return {
        "separate": _step(ours, lambda: ours(spectrogram)["masks"].squeeze(1) * spectrogram.abs(), target),
        "openunmix": _step(theirs, lambda: theirs(spectrogram.abs()), target),
    }


def hdemucs() -> Candidates:
    """training step, Hybrid Demucs at torchaudio's size, 1 x 2 s stereo at 44.1 kHz"""
    import torchaudio

    from separate.models.hdemucs import HDemucs

    theirs, ours = torchaudio.models.HDemucs(list("abcd")), HDemucs(4, 2)
    mixture, sources = torch.randn(1, 2, 88200), torch.randn(1, 4, 2, 88200)
    return {
        "separate": _step(ours, lambda: ours(mixture)["waveforms"], sources),
        "torchaudio": _step(theirs, lambda: theirs(mixture), sources),
    }


def deep_clustering() -> Candidates:
    """deep clustering loss, 16 x 400 frames x 129 bins x 20, forward and backward"""
    from separate.losses.affinity import deep_clustering, whitened

    embeddings = torch.nn.functional.normalize(torch.randn(16, 400 * 129, 20), dim=2).requires_grad_()
    owners = torch.nn.functional.one_hot(torch.randint(2, (16, 400 * 129)), 2).float()
    weights = (torch.rand(16, 400 * 129) > 0.3).float()

    def autograd(v: Tensor, y: Tensor, w: Tensor) -> Tensor:
        v, y = v * w.sqrt().unsqueeze(2), y * w.sqrt().unsqueeze(2)
        products = [torch.bmm(a.mT, b).square().sum((1, 2)) for a, b in ((v, v), (v, y), (y, y))]
        return (products[0] - 2 * products[1] + products[2]) / w.sum(1).square()

    def both(loss: Callable[..., Tensor]) -> Callable[[], object]:
        def call() -> None:
            embeddings.grad = None
            loss(embeddings, owners, weights).mean().backward()

        return call

    return {"separate": both(deep_clustering), "autograd, D x D": both(autograd), "separate, whitened": both(whitened)}


def pit() -> Candidates:
    """PIT SI-SDR, 16 x 2 x 32,000, forward and backward"""
    from separate.evaluation.sdr import pairwise_si_sdr, si_sdr
    from separate.losses.base import pick
    from separate.losses.permutation import best_permutation

    estimates, references = torch.randn(16, 2, 32000, requires_grad=True), torch.randn(16, 2, 32000)

    def both(pairwise: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def call() -> None:
            estimates.grad = None
            costs = -pairwise(estimates, references)
            pick(costs, best_permutation(costs.detach())).mean().backward()

        return call

    one_by_one = both(lambda e, r: si_sdr(e.unsqueeze(2), r.unsqueeze(1)))
    return {"separate": both(pairwise_si_sdr), "each pair by itself": one_by_one}


def kmeans() -> Candidates:
    """k-means, 51,600 x 20, 2 clusters, fit and labels"""
    from sklearn.cluster import KMeans

    from separate.clustering import assign
    from separate.clustering import kmeans as fit

    points = torch.nn.functional.normalize(_cloud(51_600, 2), dim=2)
    return {
        "separate, 4 starts": lambda: assign(points, fit(points, 2)),
        "scikit-learn, 1 start": lambda: KMeans(2, n_init=1, random_state=0).fit_predict(points[0].numpy()),
        "scikit-learn, 10 starts": lambda: KMeans(2, n_init=10, random_state=0).fit_predict(points[0].numpy()),
    }


def kmeans_song() -> Candidates:
    """k-means of a song, 15.9 million x 20, 4 clusters, fit and labels"""
    from separate.clustering import assign
    from separate.clustering import kmeans as fit

    points = _cloud(15_900_000, 4)
    return {"separate, 4 starts": lambda: assign(points, fit(points, 4))}


def bss_eval_v4() -> Candidates:
    """BSS Eval v4, four stereo stems of 30 s at 44.1 kHz, frames of 1 s"""
    from separate.evaluation.bss_eval import bss_eval_v4

    estimates, references = _stems(channels=2)
    peer = _museval()
    arrays = [x[0].mT.double().numpy() for x in (references, estimates)]
    return {
        "separate": lambda: bss_eval_v4(estimates, references, 44100, 44100),
        "museval": lambda: peer.bss_eval(*arrays, window=44100, hop=44100),
    }


def bss_eval_v3() -> Candidates:
    """BSS Eval v3, four mono stems of 30 s at 44.1 kHz, in the given order (the last peer may need --threads 1)"""
    import fast_bss_eval
    import mir_eval

    from separate.evaluation.bss_eval import bss_eval_v3

    estimates, references = (x.squeeze(2) for x in _stems(channels=1))
    ours, wide = (
        partial(bss_eval_v3, estimates, references, permute=False),
        [references[0].double(), estimates[0].double()],
    )
    arrays = [x.numpy() for x in wide]
    return {
        "separate": ours,
        "mir_eval": lambda: mir_eval.separation.bss_eval_sources(*arrays, compute_permutation=False),
        "fast_bss_eval, torch": lambda: fast_bss_eval.bss_eval_sources(*wide, compute_permutation=False),
    }


CASES: dict[str, Callable[[], Candidates]] = {
    case.__name__: case
    for case in (
        conv_tasnet, open_unmix, hdemucs, deep_clustering, pit, kmeans, kmeans_song, bss_eval_v4, bss_eval_v3,
    )
}  # fmt: skip


def _museval() -> Any:
    """museval's module of metrics; the package itself cannot be imported without ffmpeg."""
    path = importlib.metadata.distribution("museval").locate_file("museval/metrics.py")
    spec = importlib.util.spec_from_file_location("museval_metrics", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stems(channels: int) -> tuple[Tensor, Tensor]:
    """Estimates with interference and noise, and references, (1, 4, C, T) each."""
    references = torch.randn(1, 4, channels, 30 * 44100)
    return references + 0.3 * references.roll(1, 1) + 0.1 * torch.randn_like(references), references


def _step(model: torch.nn.Module, estimate: Callable[[], Tensor], target: Tensor) -> Callable[[], object]:
    """Forward, mean squared error, backward."""

    def call() -> None:
        model.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(estimate(), target).backward()

    return call


def _cloud(points: int, clusters: int) -> Tensor:
    """(1, points, 20) around random centres."""
    found = torch.randn(1, points, 20)
    centres = torch.randn(clusters, 20)
    for block in found.split(2**20, dim=1):
        block += centres[torch.randint(clusters, (block.shape[1],))]
    return found


def measure(name: str, rounds: int) -> dict[str, Any]:
    """{candidate: median and minimum in seconds, and peak in MB or None where the system does not report it}."""
    torch.manual_seed(0)
    candidates = CASES[name]()
    for call in candidates.values():
        call()
    times = in_turns({candidate: partial(seconds, call) for candidate, call in candidates.items()}, rounds)
    return {
        candidate: {"seconds": median(taken), "least": min(taken), "megabytes": _peak_in_own_process(name, candidate)}
        for candidate, taken in times.items()
    }


def _peak_in_own_process(name: str, candidate: str) -> float | None:
    command = [sys.executable, __file__, name, "--peak", candidate, "--threads", str(torch.get_num_threads())]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(found) if found.strip() else None


def peak(name: str, candidate: str) -> float | None:
    """Peak resident memory of a call beyond the memory before it, in MB; None where the system does not report it."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    torch.manual_seed(0)
    call = CASES[name]()[candidate]
    before = megabytes("VmRSS")
    reset.write_text("5")  # reset the peak
    call()
    call()  # with the gradients and buffers of the first call, as in training
    return megabytes("VmHWM") - before


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: {CASES[name].__doc__}")
    ours = next(iter(found.values()))["seconds"]
    for candidate, figures in found.items():
        memory = "" if figures["megabytes"] is None else f"{figures['megabytes']:9.0f} MB"
        print(f"  {candidate:26s}{1000 * figures['seconds']:10.1f} ms{figures['seconds'] / ours:8.2f} x{memory}")


def main() -> None:
    parser = options(__doc__, list(CASES), 7, "bench.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: one per core)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(arguments.cases[0], arguments.peak) or "")
        return
    machine = {"machine": platform.machine(), "threads": arguments.threads, "torch": str(torch.__version__)}
    results: dict[str, Any] = {"machine": machine, "rounds": arguments.rounds, "cases": {}}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name in arguments.cases or CASES:
        results["cases"][name] = measure(name, arguments.rounds)
        show(name, results["cases"][name])
        arguments.out.write_text(json.dumps(results, indent=1))
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
