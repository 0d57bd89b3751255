#!/usr/bin/env python3
"""How fast training examples come: from WAV, FLAC and the caches, beside the data set of openunmix and a plain one.

    python scripts/bench_data.py                      all cases: tables, and bench_data.json
    python scripts/bench_data.py loading --rounds 7

loading        random 6 s of four stereo stems at 44.1 kHz, in examples/s with 0, 1 and 2 workers, and the memory of a
               worker; all contestants take turns in one process and the median of the rounds counts
spectrograms   a batch through the cached STFT or transformed now, in ms, by rate, STFT and storage, from memory or disk
listing        a tree of 100,000 files: the first start, the second, and what a worker's memory grows by

Files are written to a temporary folder (10 GB at most).  They come from the system's memory, so that the work is what
is measured, except where it says disk: there the system forgets them before each batch.
openunmix reads with torchaudio.load, which torchaudio 2.11 has only with torchcodec; here soundfile reads for it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from separate.config import CacheConfig
from separate.data import open_split
from separate.data.example import FileExamples
from separate.data.layouts.base import TrackLayout
from separate.data.layouts.pools import Pools
from separate.data.layouts.shards import Shards
from separate.data.layouts.stems import Stems
from separate.data.loader import TrainingSteps, load
from separate.data.storage.cache import _mapped, clear
from separate.data.storage.quota import ARRAYS
from separate.stft import STFT

STEMS = ["vocals", "drums", "bass", "other"]
RATE, SECONDS, EXCERPT, TRACKS = 44100, 60, 6.0, 8
MUSIC = STFT(4096, 1024)
Contestants = dict[str, Callable[[int], Iterator[int]]]  # workers -> a stream of numbers of examples


def write_stems(root: Path) -> None:
    """TRACKS songs of four stems as 16-bit WAV and FLAC: tones and noise, so that FLAC has work to do."""
    rng = np.random.default_rng(0)
    time_ = np.arange(SECONDS * RATE) / RATE
    for track in range(TRACKS):
        for stem in STEMS:
            tones = sum(np.sin(2 * np.pi * f * time_) for f in rng.uniform(60, 4000, 6))
            audio = 0.05 * np.stack([tones, tones], 1) + 0.01 * rng.standard_normal((len(time_), 2))
            for kind in ("wav", "flac"):
                place = root / kind / "train" / f"{track}"
                place.mkdir(parents=True, exist_ok=True)
                soundfile.write(place / f"{stem}.{kind}", audio, RATE)
    (root / "shards").mkdir()
    for shard in range(TRACKS // 2):
        with tarfile.open(root / "shards" / f"train-{shard}.tar", "w") as tar:
            for track in (2 * shard, 2 * shard + 1):
                for stem in STEMS:
                    tar.add(root / "wav" / "train" / f"{track}" / f"{stem}.wav", f"{track}.{stem}.wav")


def stems(root: Path, kind: str = "wav") -> Stems:
    return Stems(
        root=str(root / kind),
        sources=STEMS,
        sample_rate=RATE,
        channels=2,
        excerpt=EXCERPT,
        splits={"train": "train", "valid": "train", "test": "train"},
    )


def shards(root: Path) -> Shards:
    return Shards(
        root=str(root / "shards"),
        sources=STEMS,
        sample_rate=RATE,
        channels=2,
        excerpt=EXCERPT,
        splits=dict.fromkeys(("train", "valid", "test"), "train-*.tar"),
    )


def ours(config: TrackLayout, cache: CacheConfig, batch_size: int) -> Callable[[int], Iterator[int]]:
    examples = open_split(config, "train", 0, cache, MUSIC)
    assert isinstance(examples, FileExamples)
    _fill(examples)

    def stream(workers: int) -> Iterator[int]:
        steps = TrainingSteps(examples, batch_size, seed=0)
        with closing(load(steps, range(10**6), workers, pin=False)) as batches:
            for batch in batches:
                yield len(batch.tracks)

    return stream


def _fill(examples: FileExamples) -> None:
    from separate.data.storage.prefetch import fill
    from separate.data.storage.reading import CachedReader

    if isinstance(examples.reader, CachedReader):
        fill(examples.reader, examples.regions(mixtures=False), 2)


class Plain(torch.utils.data.Dataset):
    """What one writes first: seek and read each stem with soundfile, add them up."""

    def __init__(self, root: Path, kind: str) -> None:
        tracks = sorted((root / kind / "train").iterdir())
        self.files = [[track / f"{stem}.{kind}" for stem in STEMS] for track in tracks]

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(index)
        files = self.files[int(rng.integers(len(self.files)))]
        start, frames = int(rng.integers(int((SECONDS - EXCERPT) * RATE))), int(EXCERPT * RATE)
        sources = np.stack([soundfile.read(path, frames, start, dtype="float32")[0].T for path in files])
        return sources.sum(0), sources


def plain(root: Path, kind: str, batch_size: int) -> Callable[[int], Iterator[int]]:
    def stream(workers: int) -> Iterator[int]:
        for mixture, _ in torch.utils.data.DataLoader(Plain(root, kind), batch_size, num_workers=workers):
            yield len(mixture)

    return stream


def openunmix(root: Path, batch_size: int) -> Callable[[int], Iterator[int]]:
    import openunmix.data

    def info(path: str) -> dict[str, Any]:
        found = soundfile.info(str(path))
        return {"samplerate": found.samplerate, "samples": found.frames, "duration": found.duration}

    def read(path: Path, start: float = 0.0, dur: float | None = None, info: Any = None) -> tuple[torch.Tensor, int]:
        frames = -1 if dur is None else int(dur * RATE)
        audio, rate = soundfile.read(str(path), frames, int(start * RATE), dtype="float32")
        return torch.from_numpy(audio.T), rate

    openunmix.data.load_info, openunmix.data.load_audio = info, read
    files = openunmix.data.FixedSourcesTrackFolderDataset(
        str(root / "wav"), "train", "vocals.wav", [f"{stem}.wav" for stem in STEMS[1:]], EXCERPT, random_chunks=True
    )

    def stream(workers: int) -> Iterator[int]:
        while True:
            order = torch.randint(len(files), (64,)).tolist()
            for mixture, _ in torch.utils.data.DataLoader(files, batch_size, sampler=order, num_workers=workers):
                yield len(mixture)

    return stream


def loading(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Examples per second: random 6 s of four stereo stems at 44.1 kHz, batches of 8."""
    write_stems(folder)

    def cache(kind: Any, dtype: Any) -> CacheConfig:
        return CacheConfig(kind, str(folder / "cache"), dtype)

    contestants: Contestants = {
        "separate, 16-bit WAV": ours(stems(folder), CacheConfig(folder=str(folder / "cache")), 8),
        "separate, 16-bit WAV in shards": ours(shards(folder), CacheConfig(folder=str(folder / "cache")), 8),
        "separate, FLAC": ours(stems(folder, "flac"), CacheConfig(folder=str(folder / "cache")), 8),
        "separate, cache=audio int16": ours(stems(folder, "flac"), cache("audio", "int16"), 8),
        "separate, cache=audio float32": ours(stems(folder, "flac"), cache("audio", "float32"), 8),
        "separate, cache=spectrogram float16": ours(stems(folder, "flac"), cache("spectrogram", "float16"), 8),
        "separate, cache=spectrogram float32": ours(stems(folder, "flac"), cache("spectrogram", "float32"), 8),
        "soundfile data set, 16-bit WAV": plain(folder, "wav", 8),
        "soundfile data set, FLAC": plain(folder, "flac", 8),
        "openunmix data set, 16-bit WAV": openunmix(folder, 8),
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for workers in (0, 1, 2):
        for _ in tqdm(range(rounds), f"{workers} workers"):
            for name, stream in contestants.items():
                speed, memory = _speed(stream(workers), workers)
                found[name].setdefault(f"{workers} workers", []).append(speed)
                if memory:
                    found[name].setdefault("MB in a worker", []).append(memory)
    return [{"contestant": n, **{k: statistics.median(v) for k, v in of.items()}} for n, of in found.items()]


def _speed(stream: Iterator[int], workers: int, seconds: float = 2.0) -> tuple[float, float]:
    """Examples per second after the first batches, and the most memory of a worker in MB."""
    with closing(stream) as counts:  # type: ignore[type-var]
        for _ in range(max(1, 5 * workers)):  # what was prepared ahead while nobody waited does not count
            next(counts)
        begun, examples = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            examples += next(counts)
        elapsed = time.perf_counter() - begun
        memory = max((_private(process) for process in _children()), default=0.0) if workers else 0.0
    return examples / elapsed, memory


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _private(pid: int) -> float:
    """Memory of a process that is its own or shared with its parent only through a tensor on its way, in MB."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def spectrograms(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """ms for a batch of 16 on one thread, from memory and from disk: the cached STFT read, or samples transformed."""
    if not (folder / "wav").exists():
        write_stems(folder)
    torch.set_num_threads(1)
    _keep_freed_memory()
    speed = _disk(folder)
    rows = []
    for rate, channels, excerpt, stft in (
        (8000, 1, 4.0, STFT(256, 128)),
        (16000, 1, 4.0, STFT(512, 256)),
        (44100, 2, 6.0, STFT(2048, 1024)),
        (44100, 2, 6.0, STFT(4096, 1024)),
    ):
        place = str(folder / "cache")
        ways = {
            "WAV": ("wav", CacheConfig(folder=place)),
            "FLAC": ("flac", CacheConfig(folder=place)),
            "audio float32": ("flac", CacheConfig("audio", place, "float32")),
            "audio int16": ("flac", CacheConfig("audio", place, "int16")),
            "spectrogram float32": ("flac", CacheConfig("spectrogram", place, "float32")),
            "spectrogram float16": ("flac", CacheConfig("spectrogram", place, "float16")),
        }
        steps = {}
        for name, (kind, cache) in ways.items():
            config = stems(folder, kind)
            config.sample_rate, config.channels, config.excerpt = rate, channels, excerpt
            examples = open_split(config, "train", 0, cache, stft)
            assert isinstance(examples, FileExamples)
            _fill(examples)
            steps[name] = TrainingSteps(examples, 16, seed=0)
        for where in ("memory", f"disk, {speed:.0f} MB/s"):
            times: dict[str, list[float]] = {name: [] for name in steps}
            for step in range(rounds + 3):  # memory settles in the first ones
                for name, of in steps.items():
                    if where != "memory":
                        _forget(folder)
                    begun = time.perf_counter()
                    drawn = of[step]
                    assert not isinstance(drawn, Exception)
                    batch = drawn.to(torch.device("cpu"), stft)
                    _ = batch.source_spectrograms, batch.spectrogram
                    times[name].append(1000 * (time.perf_counter() - begun))
            row = {"at": f"{rate} Hz x {channels}", "STFT": f"{stft.n_fft}/{stft.hop}", "from": where}
            rows.append({**row, **{name: statistics.median(values[3:]) for name, values in times.items()}})
        clear(folder / "cache" / ARRAYS)
    return rows


def _keep_freed_memory() -> None:
    """Fetching pages from the system for each batch takes a time that varies by half from batch to batch here."""
    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**30)


def _forget(folder: Path) -> None:
    """Let the system drop what it keeps of these files in memory."""
    _mapped.cache_clear()
    for path in folder.rglob("*.*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def _disk(folder: Path) -> float:
    """MB/s at which files are read that the system does not keep in memory."""
    _forget(folder)
    begun, size = time.perf_counter(), 0
    for path in sorted(folder.rglob("*.wav")):
        size += len(path.read_bytes())
    return size / 1e6 / (time.perf_counter() - begun)


def listing(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """100,000 clips of 500 speakers: seconds to open the training split, and MB that it holds."""
    root = folder / "many" / "tr"
    header = b"RIFF" + (36 + 800).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"\1\0\1\0" + (8000).to_bytes(4, "little") + (16000).to_bytes(4, "little") + b"\2\0\x10\0data"
    content = header + (800).to_bytes(4, "little") + np.arange(400, dtype=np.int16).tobytes()
    for speaker in tqdm(range(500), "writing 100,000 files"):
        place = root / f"speaker{speaker:03d}"
        place.mkdir(parents=True)
        for clip in range(200):
            (place / f"clip{clip:03d}.wav").write_bytes(content)
    splits = {"train": "tr", "valid": "tr", "test": "tr"}
    config = Pools(
        root=str(root.parent), sources=["s1", "s2"], interchangeable=True, sample_rate=8000, channels=1,
        excerpt=1.0, splits=splits,
    )  # fmt: skip
    cache, found = CacheConfig(folder=str(folder / "headers")), {}
    for name, times in (("first start, s", 1), ("second start, s", rounds)):
        taken = []
        for _ in range(times):
            begun = time.perf_counter()
            examples = open_split(config, "train", 0, cache)
            taken.append(time.perf_counter() - begun)
        found[name] = statistics.median(taken)
    with closing(load(TrainingSteps(examples, 8, 0), range(40), 2, pin=False)) as batches:
        for _ in range(30):
            next(batches)
        own = max(_own(pid) for pid in _children())
    return [{"files": 100_000, **found, "MB of its own in a worker, of two": own}]


def _own(pid: int) -> float:
    """Memory that a forked process has written and shares with no other, in MB."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Private_Dirty"].split()[0]) / 1024


CASES: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {
    "loading": loading,
    "spectrograms": spectrograms,
    "listing": listing,
}


def show(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}: {CASES[name].__doc__}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    values = [[row.get(column, "") for column in columns] for row in rows]
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in values]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="medians are of so many, at least 5")
    parser.add_argument("--folder", type=Path, help="for the files, to measure another disk (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("bench_data.json"))
    arguments = parser.parse_args()
    if arguments.rounds < 5 or any(name not in CASES for name in arguments.cases):
        parser.error(f"cases are {', '.join(CASES)}, and rounds at least 5")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.cases or CASES:
            results[name] = CASES[name](Path(folder), arguments.rounds)
            show(name, results[name])
            arguments.out.write_text(json.dumps(results, indent=1))
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
