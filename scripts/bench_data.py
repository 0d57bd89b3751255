#!/usr/bin/env python3
"""Speed of loading training examples from WAV, FLAC and the caches, beside openunmix's data set and a plain one.

    python scripts/bench_data.py                      all cases: tables, and bench_data.json
    python scripts/bench_data.py loading --rounds 7

loading        random 6 s of four stereo stems at 44.1 kHz, in examples/s with 0, 1 and 2 workers, and the memory of a
               worker; all contestants take turns in one process, and the result is the median over the rounds
spectrograms   ms for a batch whose STFTs are read from the cache or computed, by rate and format, from memory or disk
listing        a tree of 100,000 files: seconds of the first and the second start, and the memory that a worker adds

Files are written to a temporary folder (at most 10 GB).  They are read from the system's page cache, except where the
table says disk: there the page cache is dropped before each batch.
openunmix reads with torchaudio.load, which needs torchcodec in torchaudio 2.11; here soundfile reads instead.
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
WARM_UP = 3  # batches that are not measured, until the memory of the process is constant
Contestants = dict[str, Callable[[int], Iterator[int]]]  # workers -> a stream of numbers of examples


def write_stems(root: Path) -> None:
    """TRACKS songs of four stems as 16-bit WAV, FLAC and shards; tones and noise, so that FLAC cannot skip its work."""
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
    examples = _opened(config, cache, MUSIC)

    def stream(workers: int) -> Iterator[int]:
        steps = TrainingSteps(examples, batch_size, seed=0)
        with closing(load(steps, range(10**6), workers, pin=False)) as batches:
            for batch in batches:
                yield len(batch.tracks)

    return stream


def _opened(config: TrackLayout, cache: CacheConfig, stft: STFT) -> FileExamples:
    """The training examples of a data set, their cache filled."""
    from separate.data.storage.prefetch import fill
    from separate.data.storage.reading import CachedReader

    examples = open_split(config, "train", 0, cache, stft)
    assert isinstance(examples, FileExamples)
    if isinstance(examples.reader, CachedReader):
        fill(examples.reader, examples.regions(mixtures=False), 2)
    return examples


class Plain(torch.utils.data.Dataset):
    """A simple data set: seek and read each stem with soundfile, and add the stems up."""

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
    """Examples per second after the first batches, and the largest memory of a worker in MB."""
    with closing(stream) as counts:  # type: ignore[type-var]
        for _ in range(max(1, 5 * workers)):  # examples that were prefetched before the measurement
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
    """Anonymous and shared memory of a process in MB; tensors on their way to the parent are shared memory."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def spectrograms(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """ms for a batch of 16 on one thread, from memory and from disk: STFTs read from the cache, or computed."""
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
        steps = {}
        for name, (kind, cache) in _storages(folder / "cache").items():
            config = stems(folder, kind)
            config.sample_rate, config.channels, config.excerpt = rate, channels, excerpt
            steps[name] = TrainingSteps(_opened(config, cache, stft), 16, seed=0)
        for where, before in (("memory", lambda: None), (f"disk, {speed:.0f} MB/s", lambda: _forget(folder))):
            row = {"at": f"{rate} Hz x {channels}", "STFT": f"{stft.n_fft}/{stft.hop}", "from": where}
            rows.append({**row, **_milliseconds(steps, stft, rounds, before)})
        clear(folder / "cache" / ARRAYS)
    return rows


def _storages(cache: Path) -> dict[str, tuple[str, CacheConfig]]:
    """{name: (kind of files, cache)}."""
    place = str(cache)
    return {
        "WAV": ("wav", CacheConfig(folder=place)),
        "FLAC": ("flac", CacheConfig(folder=place)),
        "audio float32": ("flac", CacheConfig("audio", place, "float32")),
        "audio int16": ("flac", CacheConfig("audio", place, "int16")),
        "spectrogram float32": ("flac", CacheConfig("spectrogram", place, "float32")),
        "spectrogram float16": ("flac", CacheConfig("spectrogram", place, "float16")),
    }


def _milliseconds(
    steps: dict[str, TrainingSteps], stft: STFT, rounds: int, before: Callable[[], None]
) -> dict[str, float]:
    """{name: median ms for a batch and its STFTs}; before: called before each batch."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in range(rounds + WARM_UP):
        for name, of in steps.items():
            before()
            begun = time.perf_counter()
            drawn = of[step]
            assert not isinstance(drawn, Exception)
            batch = drawn.to(torch.device("cpu"), stft)
            _ = batch.source_spectrograms, batch.spectrogram
            times[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def _keep_freed_memory() -> None:
    """Keep freed memory in this process: the time to get new pages from the system varies by half between batches."""
    trim_threshold, mmap_threshold = -1, -3  # of glibc's malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**30)


def _forget(folder: Path) -> None:
    """Drop these files from the page cache."""
    _mapped.cache_clear()
    for path in folder.rglob("*.*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def _disk(folder: Path) -> float:
    """MB/s at which files are read from the disk."""
    _forget(folder)
    begun, size = time.perf_counter(), 0
    for path in sorted(folder.rglob("*.wav")):
        size += len(path.read_bytes())
    return size / 1e6 / (time.perf_counter() - begun)


def listing(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """100,000 clips of 500 speakers: seconds to open the training split, and MB that a worker adds."""
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
    """Private memory of a forked process in MB: pages that it has written."""
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
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that the median is taken over, at least 5")
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for the files, to measure another disk (default: the system's temporary folder)",
    )
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
