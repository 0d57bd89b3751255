#!/usr/bin/env python3
"""Training beside plain PyTorch: whole steps, from files on disk to updated weights.

    python scripts/bench_training.py                          all cases: a table, and bench_training.json
    python scripts/bench_training.py blstm --threads 1 2
    python scripts/bench_training.py blstm --busy             beside a program that keeps one core busy
    python scripts/bench_training.py --device cuda --threads 4

separate    as `separate-train` runs it
untuned     the same with SEPARATE_TUNE=0 trainer.precision=fp32
plain       a simple loop around a network of torch, torchaudio or openunmix: DataLoader, soundfile, torch.stft, Adam

Each contestant runs in its own process, since memory and threads are settings of a process.  They take turns; the
result is the median over the rounds.  Needs the packages of the extra `test`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

CONTESTANTS = ("separate", "untuned", "plain")
SECONDS, TAKES = 10, 4  # length of a file; files per speaker, or songs
Step = Callable[[], object]

SPEECH = ["data=pools", "data.excerpt=3"]
MUSIC = ["data=stems", "data.sample_rate=44100", "data.channels=2", "stft=music"]
CASES: dict[str, list[str]] = {
    "blstm": [*SPEECH, "model=blstm", "model.layers=4", "loss=si_sdr", "batch_size=16"],
    "conv_tasnet": [*SPEECH, "model=conv_tasnet", "batch_size=2"],
    "open_unmix": [*MUSIC, "model=open_unmix", "data.sources=[vocals,other]", "data.excerpt=6", "batch_size=4",
                   "loss=msa_mse"],
    "hdemucs": [*MUSIC, "model=hdemucs", "data.sources=[vocals,drums,bass,other]", "data.excerpt=2", "batch_size=1"],
}  # fmt: skip


def write_speech(root: Path) -> None:
    """Four speakers at 8 kHz."""
    import soundfile

    rng = np.random.default_rng(0)
    for speaker, take in itertools.product(range(4), range(TAKES)):
        for split in ("tr", "cv", "tt"):
            place = root / split / f"speaker{speaker}"
            place.mkdir(parents=True, exist_ok=True)
            soundfile.write(place / f"{take}.wav", 0.1 * rng.standard_normal(SECONDS * 8000), 8000)


def write_music(root: Path) -> None:
    """Songs of four stereo stems at 44.1 kHz."""
    import soundfile

    rng = np.random.default_rng(0)
    for split, song in itertools.product(("train", "valid"), range(TAKES)):
        place = root / split / str(song)
        place.mkdir(parents=True, exist_ok=True)
        for stem in ("vocals", "drums", "bass", "other"):
            soundfile.write(place / f"{stem}.wav", 0.1 * rng.standard_normal((SECONDS * 44100, 2)), 44100)


def separate(case: str, root: Path, threads: int, device: str, *overrides: str) -> Step:
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

    chosen = [*CASES[case], f"data.root={root}", f"run={root}", f"trainer.threads={threads}", "data.workers=1"]
    chosen.append(f"device={device}")
    with initialize_config_module("separate.conf", version_base="1.3"):
        config = from_hydra(compose("train", [*chosen, *overrides]), TrainConfig)
    settle(threads)
    state, training = prepare(asdict(config), root)
    batches = load(training.steps, range(10**6), 1, pin=device == "cuda")
    state.separator.train()
    return lambda: train_step(state, training, next(batches))


def plain(case: str, root: Path, threads: int, device: str) -> Step:
    """A training step of a simple PyTorch loop."""
    import torch

    torch.set_num_threads(threads)
    speech = case in ("blstm", "conv_tasnet")
    batch_size, seconds = int(_option(case, "batch_size")), float(_option(case, "data.excerpt"))
    stems = ["vocals", "other"] if case == "open_unmix" else ["vocals", "drums", "bass", "other"]
    dataset = _Excerpts(root, None if speech else stems, round(seconds * (8000 if speech else 44100)))
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size, num_workers=1, pin_memory=device == "cuda")  # type: ignore[arg-type]
    with torch.device(device):
        loss, parameters = LOOPS[case]()
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    batches = iter(loader)

    def step() -> None:
        sources = next(batches).to(device, non_blocking=True)
        optimizer.zero_grad()
        found = loss(sources.sum(dim=1), sources)
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        found.item()

    return step


def _option(case: str, key: str) -> str:
    return next(item for item in CASES[case] if item.startswith(f"{key}=")).partition("=")[2]


class _Excerpts:
    """Random excerpts (S, C, T) of two speakers or of the stems of a song."""

    def __init__(self, root: Path, stems: list[str] | None, frames: int) -> None:
        if stems is None:
            pools = [sorted(speaker.glob("*.wav")) for speaker in sorted((root / "tr").iterdir())]
            self.files = [list(pair) for a, b in itertools.combinations(pools, 2) for pair in zip(a, b, strict=True)]
        else:
            self.files = [[song / f"{stem}.wav" for stem in stems] for song in sorted((root / "train").iterdir())]
        self.frames = frames

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, number: int) -> np.ndarray:
        import soundfile

        rng = np.random.default_rng(number)
        sources = []
        for path in self.files[rng.integers(len(self.files))]:
            start = rng.integers(soundfile.info(path).frames - self.frames + 1)
            audio, _ = soundfile.read(path, self.frames, start, dtype="float32", always_2d=True)
            sources.append(audio.T)
        return np.stack(sources)


def _blstm() -> tuple[Callable, list]:
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


def _conv_tasnet() -> tuple[Callable, list]:
    import torchaudio

    network = torchaudio.models.ConvTasNet(2)
    return lambda mixture, sources: _permuted(network(mixture), sources[:, :, 0]), list(network.parameters())


def _open_unmix() -> tuple[Callable, list]:
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


def _hdemucs() -> tuple[Callable, list]:
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


LOOPS: dict[str, Callable[[], tuple[Callable, list]]] = {
    "blstm": _blstm,
    "conv_tasnet": _conv_tasnet,
    "open_unmix": _open_unmix,
    "hdemucs": _hdemucs,
}


def serve(case: str, contestant: str, root: Path, threads: int, device: str) -> None:
    """Run a contestant: read a number of steps, run them, write the seconds taken and the peak memory in MB; repeat."""
    out, sys.stdout = sys.stdout, sys.stderr
    overrides = ("trainer.precision=fp32",) if contestant == "untuned" else ()
    if contestant == "plain":
        step = plain(case, root, threads, device)
    else:
        step = separate(case, root, threads, device, *overrides)
    for _ in range(2):
        step()
    _wait(device)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            step()
        _wait(device)
        print(time.perf_counter() - begun, _peak(device), file=out, flush=True)


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024


def measure(case: str, root: Path, threads: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds per step, and peak memory in MB: of the process, or on the GPU."""
    rounds, steps = options.rounds, options.steps
    started = {name: _start(case, name, root, threads, options.device) for name in CONTESTANTS}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if options.busy else None
    taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks: dict[str, float] = {}
    try:
        for _ in range(rounds):
            for name, process in started.items():
                assert process.stdin and process.stdout
                print(steps, file=process.stdin, flush=True)
                seconds, peaks[name] = map(float, process.stdout.readline().split())
                taken[name].append(seconds / steps)
    finally:
        for process in started.values():
            process.kill()
            process.wait()
        if other:
            other.kill()
            other.wait()
    return {name: {"seconds": statistics.median(taken[name]), "megabytes": peaks[name]} for name in CONTESTANTS}


def _start(case: str, contestant: str, root: Path, threads: int, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, case, "--serve", contestant, str(root), "--threads", str(threads)]
    command += ["--device", device]
    environment = {**os.environ, **({} if contestant == "separate" else {"SEPARATE_TUNE": "0"})}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{contestant} could not be started; run {' '.join(command)} to see why")
    return process


def cases(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[str, Path, int]]:
    speech, music = root / "speech", root / "music"
    write_speech(speech)
    write_music(music)
    for case, threads in itertools.product(arguments.cases or CASES, arguments.threads):
        yield case, speech if case in ("blstm", "conv_tasnet") else music, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=int, default=5, help="rounds that the median is taken over, at least 5")
    parser.add_argument("--steps", type=int, default=3, help="steps of each contestant in a round")
    parser.add_argument("--busy", action="store_true", help="beside a program that keeps one core busy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("bench_training.json"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.cases[0], arguments.serve[0], Path(arguments.serve[1]), arguments.threads[0], arguments.device)
        return
    if (unknown := set(arguments.cases) - set(CASES)) or arguments.rounds < 5:
        parser.error(f"{', '.join(unknown)}: cases are {', '.join(CASES)}, and rounds at least 5")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case, root, threads in cases(arguments, Path(folder)):
            found = measure(case, root, threads, arguments)
            results.append(
                {"case": case, "threads": threads, "busy": arguments.busy, "device": arguments.device, **found}
            )
            ours = found["separate"]["seconds"]
            row = "".join(
                f"  {name} {1000 * one['seconds']:.0f} ms ({one['seconds'] / ours:.2f} x) {one['megabytes']:.0f} MB"
                for name, one in found.items()
            )
            print(f"{case}, {threads} thread{'s' if threads > 1 else ''}:{row}", flush=True)
            arguments.out.write_text(json.dumps(results, indent=1))
    print(arguments.out)


if __name__ == "__main__":
    main()
