#!/usr/bin/env python3
"""Time and memory of training steps, from files on disk to updated weights, compared with plain PyTorch.

    python scripts/bench_training.py                          all cases: a table, and bench_training.json
    python scripts/bench_training.py blstm --threads 1 2
    python scripts/bench_training.py blstm --busy             while another program keeps one core busy
    python scripts/bench_training.py --device cuda --threads 4
    python scripts/bench_training.py --loop --steps 50        overhead of the training loop over a bare one
    python scripts/bench_training.py --peak                   GFLOP/s of a BLSTM step, and share of the matrix peak

separate    as `separate-train` runs it
untuned     the same with SEPARATE_TUNE=0 trainer.precision=fp32
plain       a simple loop around a network of torch, torchaudio or openunmix: DataLoader, soundfile, torch.stft, Adam

Each candidate runs in its own process, since memory and threads are settings of a process.  They take turns; the
result is the median over the rounds.  Needs the packages of the extra `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from statistics import median
from typing import Any

import bench_loop
import numpy as np
from bench_common import PlainExcerpts, in_turns, megabytes, options, seconds, write_audio
from bench_loop import LOOPS

CANDIDATES = ("separate", "untuned", "plain")
LENGTH, TAKES = 10, 4  # seconds of a file; files of a speaker, or songs
STEMS = ("vocals", "drums", "bass", "other")
Step = Callable[[], object]
Loss = Callable[[Any, Any], Any]  # of mixtures and sources


@dataclass
class Case:
    """A training: overrides of `separate-train`, and the loss of the plain loop with its parameters.

    excerpt: seconds.  stems: of each song at 44.1 kHz in stereo; () for two speakers at 8 kHz.
    """

    overrides: list[str]
    batch_size: int
    excerpt: int
    loop: Callable[[], tuple[Loss, list]]
    stems: tuple[str, ...] = ()

    @property
    def sample_rate(self) -> int:
        return 44100 if self.stems else 8000


def write_data(root: Path, music: bool = True) -> None:
    """speech: four speakers at 8 kHz; music: songs of four stereo stems at 44.1 kHz.  All are noise."""
    rng = np.random.default_rng(0)
    for split, speaker, take in product(("tr", "cv", "tt"), range(4), range(TAKES)):
        place = root / "speech" / split / f"speaker{speaker}" / f"{take}.wav"
        write_audio(place, 0.1 * rng.standard_normal(LENGTH * 8000), 8000)
    for split, song, stem in product(("train", "valid") if music else (), range(TAKES), STEMS):
        place = root / "music" / split / str(song) / f"{stem}.wav"
        write_audio(place, 0.1 * rng.standard_normal((LENGTH * 44100, 2)), 44100)


def separate(case: Case, root: Path, threads: int, device: str, overrides: list[str]) -> Step:
    """A training step of `separate-train`."""
    from separate.process import settle, tune

    tune()
    from dataclasses import asdict

    from hydra import compose, initialize_config_module

    from separate.compose import from_hydra
    from separate.config import TrainConfig
    from separate.data.loader import load
    from separate.training.setup import prepare
    from separate.training.step import train_step

    if case.stems:
        data = ["data=stems", "data.channels=2", "stft=music", f"data.sources=[{','.join(case.stems)}]"]
    else:
        data = ["data=pools"]
    data += [f"data.root={root}", f"data.sample_rate={case.sample_rate}", f"data.excerpt={case.excerpt}"]
    process = [f"run={root}", f"trainer.threads={threads}", "data.workers=1", f"device={device}"]
    chosen = [*data, *case.overrides, f"batch_size={case.batch_size}", *process, *overrides]
    with initialize_config_module("separate.conf", version_base="1.3"):
        config = from_hydra(compose("train", chosen), TrainConfig)
    settle(threads)
    state, training = prepare(asdict(config), root)
    batches = load(training.steps, range(10**6), 1, pin=device == "cuda")
    state.separator.train()
    return lambda: train_step(state, training, next(batches))


def plain(case: Case, root: Path, threads: int, device: str) -> Step:
    """A training step of a simple PyTorch loop."""
    import torch

    torch.set_num_threads(threads)
    if case.stems:
        files = [[song / f"{stem}.wav" for stem in case.stems] for song in sorted((root / "train").iterdir())]
    else:
        speakers = [sorted(speaker.glob("*.wav")) for speaker in sorted((root / "tr").iterdir())]
        files = [list(pair) for a, b in combinations(speakers, 2) for pair in zip(a, b, strict=True)]
    dataset = PlainExcerpts(files, LENGTH * case.sample_rate, case.excerpt * case.sample_rate)
    batches = iter(dataset.loader(case.batch_size, workers=1, pin=device == "cuda"))
    with torch.device(device):
        loss, parameters = case.loop()
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        mixture, sources = (signals.to(device, non_blocking=True) for signals in next(batches))
        optimizer.zero_grad()
        found = loss(mixture, sources)
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        found.item()

    return step


def _blstm() -> tuple[Loss, list]:
    """Mask inference by torch's LSTM, trained towards SI-SDR of the better permutation."""
    import torch
    from torch import nn

    window = torch.hann_window(256).sqrt()
    layers = nn.LSTM(129, 300, 4, batch_first=True, bidirectional=True, dropout=0.2)
    linear = nn.Linear(600, 2 * 129)

    def loss(mixture: Any, sources: Any) -> Any:
        spectrum = torch.stft(mixture[:, 0], 256, 128, window=window, return_complex=True)
        masks = torch.sigmoid(linear(layers(torch.log10(spectrum.abs() + 1e-4).mT)[0])).mT.unflatten(1, (2, 129))
        flat = (masks * spectrum[:, None]).flatten(0, 1)
        estimates = torch.istft(flat, 256, 128, window=window, length=mixture.shape[-1]).unflatten(0, (-1, 2))
        return _permuted(estimates, sources[:, :, 0])

    return loss, [*layers.parameters(), *linear.parameters()]


def _conv_tasnet() -> tuple[Loss, list]:
    import torchaudio

    network = torchaudio.models.ConvTasNet(2)
    return lambda mixture, sources: _permuted(network(mixture), sources[:, :, 0]), list(network.parameters())


def _open_unmix() -> tuple[Loss, list]:
    """One network per stem, trained towards its magnitudes."""
    import openunmix.model
    import torch
    from torch import nn

    window = torch.hann_window(4096)
    networks = nn.ModuleList(openunmix.model.OpenUnmix(2049, 2, max_bin=1487) for _ in range(2))

    def magnitude(x: Any) -> Any:
        flat = torch.stft(x.flatten(0, -2), 4096, 1024, window=window, return_complex=True).abs()
        return flat.unflatten(0, x.shape[:-1])

    def loss(mixture: Any, sources: Any) -> Any:
        heard, wanted = magnitude(mixture), magnitude(sources)
        return sum(nn.functional.mse_loss(network(heard), wanted[:, i]) for i, network in enumerate(networks))

    return loss, list(networks.parameters())


def _hdemucs() -> tuple[Loss, list]:
    import torch
    import torchaudio

    network = torchaudio.models.HDemucs(list("abcd"))
    return lambda mixture, sources: torch.nn.functional.l1_loss(network(mixture), sources), list(network.parameters())


def _permuted(estimates: Any, sources: Any) -> Any:
    """Negative SI-SDR of the better of two permutations, (B, 2, T)."""
    import torch

    def si_sdr(estimate: Any, source: Any) -> Any:
        scale = (estimate * source).sum(-1, keepdim=True) / (source.square().sum(-1, keepdim=True) + 1e-8)
        target = scale * source
        noise = estimate - target
        return 10 * torch.log10(target.square().sum(-1) / (noise.square().sum(-1) + 1e-8) + 1e-8)

    straight, crossed = (si_sdr(estimates, other).mean(1) for other in (sources, sources.flip(1)))
    return -torch.maximum(straight, crossed).mean()


CASES = {
    "blstm": Case(["model=blstm", "model.layers=4", "loss=si_sdr"], 16, 3, _blstm),
    "conv_tasnet": Case(["model=conv_tasnet"], 2, 3, _conv_tasnet),
    "open_unmix": Case(["model=open_unmix", "loss=msa_mse"], 4, 6, _open_unmix, ("vocals", "other")),
    "hdemucs": Case(["model=hdemucs"], 1, 2, _hdemucs, STEMS),
}


def serve(case: Case, candidate: str, root: Path, threads: int, device: str) -> None:
    """Run a candidate: read a number of steps, run them, write the seconds taken and the peak memory in MB; repeat."""
    out, sys.stdout = sys.stdout, sys.stderr
    overrides = ["trainer.precision=fp32"] if candidate == "untuned" else []
    make: Callable[..., Step] = plain if candidate == "plain" else partial(separate, overrides=overrides)
    step = make(case, root, threads, device)

    import torch  # after `separate` has called `tune`

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    run(2)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        taken = seconds(partial(run, int(line)))
        print(taken, _peak(device), file=out, flush=True)


def _peak(device: str) -> float:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return megabytes("VmHWM") if sys.platform == "linux" else 0.0


def measure(case: str, root: Path, threads: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds per step, and peak memory in MB: of the process, or on the GPU."""
    processes = {name: _start(case, name, root, threads, arguments.device) for name in CANDIDATES}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], text=True)] if arguments.busy else []
    try:
        turns = {name: partial(_turn, process, arguments.steps) for name, process in processes.items()}
        found = in_turns(turns, arguments.rounds)
    finally:
        for process in [*processes.values(), *busy]:
            process.kill()
            process.wait()
    return {name: {"seconds": median(t for t, _ in of), "megabytes": of[-1][1]} for name, of in found.items()}


def _turn(process: subprocess.Popen[str], steps: int) -> tuple[float, float]:
    """Seconds per step, and the peak memory in MB until now."""
    assert process.stdin and process.stdout
    print(steps, file=process.stdin, flush=True)
    taken, peak = map(float, process.stdout.readline().split())
    return taken / steps, peak


def _start(case: str, candidate: str, root: Path, threads: int, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, case, "--serve", candidate, str(root), "--threads", str(threads)]
    command += ["--device", device]
    environment = {**os.environ, **({} if candidate == "separate" else {"SEPARATE_TUNE": "0"})}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{candidate} could not be started; run {' '.join(command)} to see why")
    return process


def show(case: str, threads: int, found: dict[str, dict[str, float]]) -> None:
    ours = found["separate"]["seconds"]
    row = "".join(
        f"  {name} {1000 * one['seconds']:.0f} ms ({one['seconds'] / ours:.2f} x) {one['megabytes']:.0f} MB"
        for name, one in found.items()
    )
    print(f"{case}, {threads} thread{'s' if threads > 1 else ''}:{row}", flush=True)


def in_process(arguments: argparse.Namespace) -> None:
    """The measurements of bench_loop.py, each for the first of `--threads`."""
    from separate.process import tune

    tune()
    results: dict[str, Any] = {"threads": arguments.threads[0], "device": arguments.device}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), music=False)
        root = Path(folder) / "speech"
        for case in (arguments.cases or list(LOOPS)) if arguments.loop else []:
            results[case] = bench_loop.loop(case, root, arguments)
            bench_loop.show_loop(case, results[case])
        if arguments.peak:
            results["peak"] = bench_loop.peak(root, arguments)
    arguments.out.write_text(json.dumps(results, indent=1))
    print(arguments.out)


def main() -> None:
    parser = options(__doc__, list(dict.fromkeys([*CASES, *LOOPS])), 5, "bench_training.json")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--steps", type=int, default=3, help="steps of each candidate in a round (default: 3)")
    parser.add_argument("--busy", action="store_true", help="keep one core busy with another program")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--loop", action="store_true", help=f"overhead of the training loop: {', '.join(LOOPS)}")
    parser.add_argument("--peak", action="store_true", help="GFLOP/s of a BLSTM step, and share of the matrix peak")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="keys of separate-train for these two")
    arguments = parser.parse_args()
    known = LOOPS if arguments.loop or arguments.peak else CASES
    if unknown := [case for case in arguments.cases if case not in known]:
        parser.error(f"{unknown[0]} is no case of this measurement; choose from {', '.join(known)}")
    if arguments.loop or arguments.peak:
        in_process(arguments)
        return
    cases, device = arguments.cases or list(CASES), arguments.device
    if arguments.serve:
        candidate, root = arguments.serve
        serve(CASES[cases[0]], candidate, Path(root), arguments.threads[0], device)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        for case, threads in product(cases, arguments.threads):
            root = Path(folder) / ("music" if CASES[case].stems else "speech")
            found = measure(case, root, threads, arguments)
            results.append({"case": case, "threads": threads, "busy": arguments.busy, "device": device, **found})
            show(case, threads, found)
            arguments.out.write_text(json.dumps(results, indent=1))
    print(arguments.out)


if __name__ == "__main__":
    main()
