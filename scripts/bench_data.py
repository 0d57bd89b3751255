#!/usr/bin/env python3
"""Speed of loading training examples from WAV, FLAC and the caches, compared with openunmix and a plain data set.

    python scripts/bench_data.py                      all cases: tables, and bench_data.json
    python scripts/bench_data.py loading --rounds 7

loading        random 6 s of four stereo stems at 44.1 kHz, in examples/s with 0, 1 and 2 workers, and the memory of a
               worker; all candidates take turns in one process, and the result is the median over the rounds
spectrograms   ms for a batch whose STFTs are read from the cache or computed, by rate and format, from memory or disk
listing        a tree of 100,000 files: seconds of the first and the second start, and the memory that a worker adds

Files are written to a temporary folder (at most 10 GB).  They are read from the system's page cache, except where the
table says disk: there the page cache is dropped before each batch.
openunmix reads with torchaudio.load, which needs torchcodec in torchaudio 2.11; here soundfile reads instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from bench_common import PlainExcerpts, in_turns, megabytes, options, seconds, write_audio
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
SPLITS = ("train", "valid", "test")
RATE, LENGTH, EXCERPT, TRACKS = 44100, 60, 6.0, 8  # Hz, seconds, seconds, songs
WARM_UP = 3  # batches before the measurement, until the memory of the process is constant
Stream = Callable[[int], Iterator[int]]  # number of workers -> the number of examples of each batch

STORAGES: dict[str, tuple[str, Any, Any]] = {  # files, kind and dtype of the cache
    "16-bit WAV": ("wav", "none", "float32"),
    "16-bit WAV in shards": ("shards", "none", "float32"),
    "FLAC": ("flac", "none", "float32"),
    "cache=audio int16": ("flac", "audio", "int16"),
    "cache=audio float32": ("flac", "audio", "float32"),
    "cache=spectrogram float16": ("flac", "spectrogram", "float16"),
    "cache=spectrogram float32": ("flac", "spectrogram", "float32"),
}


def write_stems(root: Path) -> None:
    """TRACKS songs of four stems as 16-bit WAV, FLAC and shards: tones and noise, as FLAC compresses silence away."""
    rng = np.random.default_rng(0)
    time_ = np.arange(LENGTH * RATE) / RATE
    for track in range(TRACKS):
        for stem in STEMS:
            tones = sum(np.sin(2 * np.pi * f * time_) for f in rng.uniform(60, 4000, 6))
            audio = 0.05 * np.stack([tones, tones], 1) + 0.01 * rng.standard_normal((len(time_), 2))
            for kind in ("wav", "flac"):
                write_audio(root / kind / "train" / f"{track}" / f"{stem}.{kind}", audio, RATE)
    (root / "shards").mkdir()
    for shard in range(TRACKS // 2):
        with tarfile.open(root / "shards" / f"train-{shard}.tar", "w") as tar:
            for track in (2 * shard, 2 * shard + 1):
                for stem in STEMS:
                    tar.add(root / "wav" / "train" / f"{track}" / f"{stem}.wav", f"{track}.{stem}.wav")


def layout(root: Path, kind: str, rate: int = RATE, channels: int = 2, excerpt: float = EXCERPT) -> TrackLayout:
    """The songs of `write_stems` as a data set.  kind: wav, flac or shards."""
    values: dict[str, Any] = {"root": str(root / kind), "sources": STEMS, "sample_rate": rate, "channels": channels}
    if kind == "shards":
        return Shards(**values, excerpt=excerpt, splits=dict.fromkeys(SPLITS, "train-*.tar"))
    return Stems(**values, excerpt=excerpt, splits=dict.fromkeys(SPLITS, "train"))


def opened(config: TrackLayout, cache: CacheConfig, stft: STFT) -> FileExamples:
    """The training examples of a data set, their cache filled."""
    from separate.data.storage.prefetch import fill
    from separate.data.storage.reading import CachedReader

    examples = open_split(config, "train", 0, cache, stft)
    assert isinstance(examples, FileExamples)
    if isinstance(examples.reader, CachedReader):
        fill(examples.reader, examples.regions(mixtures=False), 2)
    return examples


def ours(root: Path, storage: str, batch_size: int) -> Stream:
    files, kind, dtype = STORAGES[storage]
    examples = opened(layout(root, files), CacheConfig(kind, str(root / "cache"), dtype), STFT(4096, 1024))

    def stream(workers: int) -> Iterator[int]:
        steps = TrainingSteps(examples, batch_size, seed=0)
        with closing(load(steps, range(10**6), workers, pin=False)) as batches:
            for batch in batches:
                yield len(batch.tracks)

    return stream


def plain(root: Path, kind: str, batch_size: int) -> Stream:
    tracks = sorted((root / kind / "train").iterdir())
    files = [[track / f"{stem}.{kind}" for stem in STEMS] for track in tracks]
    dataset = PlainExcerpts(files, LENGTH * RATE, int(EXCERPT * RATE))
    return lambda workers: (len(mixtures) for mixtures, _ in dataset.loader(batch_size, workers))


def openunmix(root: Path, batch_size: int) -> Stream:
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
    candidates: dict[str, Stream] = {
        **{f"separate, {storage}": ours(folder, storage, 8) for storage in STORAGES},
        "soundfile data set, 16-bit WAV": plain(folder, "wav", 8),
        "soundfile data set, FLAC": plain(folder, "flac", 8),
        "openunmix data set, 16-bit WAV": openunmix(folder, 8),
    }
    rows: dict[str, dict[str, Any]] = {name: {"candidate": name} for name in candidates}
    for workers in (0, 1, 2):
        turns = {name: partial(_speed, stream, workers) for name, stream in candidates.items()}
        for name, found in in_turns(turns, rounds).items():
            rows[name][f"{workers} workers"] = median(speed for speed, _ in found)
            if workers:
                rows[name][f"MB per worker of {workers}"] = median(memory for _, memory in found)
    return list(rows.values())


def _speed(stream: Stream, workers: int, duration: float = 2.0) -> tuple[float, float]:
    """Examples per second after the first batches, and the largest memory of a worker in MB.

    Shared memory is included, because a worker passes tensors to its parent in it.
    """
    with closing(stream(workers)) as counts:  # type: ignore[type-var]
        for _ in range(max(1, 5 * workers)):  # prefetched examples
            next(counts)
        begun, examples = time.perf_counter(), 0
        while time.perf_counter() - begun < duration:
            examples += next(counts)
        elapsed = time.perf_counter() - begun
        memory = [megabytes("RssAnon", "RssShmem", process=worker) for worker in _children()] if workers else []
    return examples / elapsed, max(memory, default=0.0)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


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
        for storage, (files, kind, dtype) in STORAGES.items():
            if files != "shards":
                config = layout(folder, files, rate, channels, excerpt)
                cache = CacheConfig(kind, str(folder / "cache"), dtype)
                steps[storage] = TrainingSteps(opened(config, cache, stft), 16, seed=0)
        for where, before in (("memory", lambda: None), (f"disk, {speed:.0f} MB/s", lambda: _forget(folder))):
            row = {"at": f"{rate} Hz x {channels}", "STFT": f"{stft.n_fft}/{stft.hop}", "from": where}
            rows.append({**row, **_milliseconds(steps, stft, rounds, before)})
        clear(folder / "cache" / ARRAYS)
    return rows


def _milliseconds(
    steps: dict[str, TrainingSteps], stft: STFT, rounds: int, before: Callable[[], None]
) -> dict[str, float]:
    """{name: median ms for a batch and its STFTs}; before: called before each batch."""

    def load_batch(of: TrainingSteps, step: int) -> None:
        drawn = of[step]
        assert not isinstance(drawn, Exception)
        batch = drawn.to(torch.device("cpu"), stft)
        _ = batch.source_spectrograms, batch.spectrogram

    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in range(rounds + WARM_UP):
        for name, of in steps.items():
            before()
            times[name].append(1000 * seconds(partial(load_batch, of, step)))
    return {name: median(taken[WARM_UP:]) for name, taken in times.items()}


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
    files = sorted(folder.rglob("*.wav"))
    taken = seconds(lambda: [len(path.read_bytes()) for path in files])
    return sum(path.stat().st_size for path in files) / 1e6 / taken


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
    config = Pools(
        root=str(root.parent), sources=["s1", "s2"], interchangeable=True, sample_rate=8000, channels=1,
        excerpt=1.0, splits=dict.fromkeys(SPLITS, "tr"),
    )  # fmt: skip
    cache = CacheConfig(folder=str(folder / "headers"))
    first, *later = (seconds(lambda: open_split(config, "train", 0, cache)) for _ in range(1 + rounds))
    steps = TrainingSteps(open_split(config, "train", 0, cache), 8, 0)
    with closing(load(steps, range(40), 2, pin=False)) as batches:
        for _ in range(30):
            next(batches)
        written = [megabytes("Private_Dirty", process=worker, file="smaps_rollup") for worker in _children()]
    found = {"first start, s": first, "second start, s": median(later)}
    return [{"files": 100_000, **found, "MB of its own in a worker, of two": max(written)}]


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
    parser = options(__doc__, list(CASES), 5, "bench_data.json")
    parser.add_argument("--folder", type=Path, help="for the files, on the disk to measure (default: temporary files)")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.cases or CASES:
            results[name] = CASES[name](Path(folder), arguments.rounds)
            show(name, results[name])
            arguments.out.write_text(json.dumps(results, indent=1))
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
