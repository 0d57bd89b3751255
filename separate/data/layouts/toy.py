"""Songs synthesised from a seed: a gliding voice with vibrato, plucked chords and drums, in one register."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from separate.data.example import Example, Examples
from separate.data.layouts.base import Layout
from separate.data.layouts.opening import Opening
from separate.errors import UsageError
from separate.validation import number

SECONDS = 8.0  # of each song
LEVEL = 0.1  # RMS of each source, +-3 dB


@dataclass
class Toy(Layout):
    """Synthesised songs of SECONDS; no files are needed.  tracks: the number of songs in each split."""

    tracks: dict[str, int] = number({}, least=0, most=1_000_000, example="{train: 64, valid: 8, test: 8}")

    def open(self, split: str, opening: Opening) -> ToySongs:
        if opening.cache.kind != "none":
            raise UsageError(f"data=toy is synthesised and has no files for cache={opening.cache.kind}; use cache=none")
        return ToySongs(self, split, opening.seed)


class ToySongs(Examples):
    """Songs in memory.  Training examples take each source from a random song; fixed examples keep songs together."""

    def __init__(self, layout: Toy, split: str, seed: int) -> None:
        super().__init__(layout.sources, layout.sample_rate, layout.channels, layout.excerpt)
        unknown = [name for name in layout.sources if name not in SOURCES]
        if unknown:
            raise UsageError(f"data=toy has no source {unknown[0]}; data.sources can name {', '.join(SOURCES)}")
        self.songs = layout.tracks.get(split, 0)
        if self.songs < 1:
            raise UsageError(f"data.tracks.{split}={self.songs} must be at least 1")
        if layout.excerpt > SECONDS:
            raise UsageError(
                f"data.excerpt={layout.excerpt} s is longer than the songs of data=toy; use at most {SECONDS}"
            )
        self.split = split
        self.seed = seed

    def __len__(self) -> int:
        return self.songs * int(SECONDS * self.sample_rate / self.frames)

    def _song(self, index: int) -> np.ndarray:
        """A whole song, (S, C, T)."""
        mono = np.stack(
            [_source(name, self.sample_rate, (self.seed, *self.split.encode(), index)) for name in self.sources]
        )
        return np.repeat(mono[:, None], self.channels, axis=1)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        songs = rng.integers(self.songs, size=len(self.sources))
        parts = []
        for source, song in enumerate(songs):
            audio = self._song(int(song))[source]
            start = int(rng.integers(audio.shape[-1] - self.frames + 1))
            parts.append(audio[:, start : start + self.frames] * 10 ** (rng.uniform(-3, 3) / 20))
        return Example("+".join(f"song_{song}" for song in songs), np.stack(parts).astype(np.float32))

    def fixed(self, index: int) -> Example:
        song, place = divmod(index, int(SECONDS * self.sample_rate / self.frames))
        start = place * self.frames
        return Example(f"song_{song}", self._song(song)[..., start : start + self.frames])

    @property
    def recordings(self) -> int:
        return self.songs

    def recording(self, index: int) -> Example:
        return Example(f"song_{index}", self._song(index))


@lru_cache(maxsize=1024)
def _source(name: str, rate: int, key: tuple[int, ...]) -> np.ndarray:
    """One source of one song, (T,) float32."""
    rng = np.random.default_rng([*key, *name.encode()])
    audio = SOURCES[name](rate, rng)
    level = LEVEL * 10 ** (rng.uniform(-3, 3) / 20)
    audio = (audio * (level / np.sqrt(np.mean(audio**2)))).astype(np.float32)
    audio.setflags(write=False)
    return audio


def _hz(semitones: float | np.ndarray) -> float | np.ndarray:
    """Frequency of a MIDI pitch."""
    return 440.0 * 2 ** ((np.asarray(semitones) - 69) / 12)


def _voice(rate: int, rng: np.random.Generator) -> np.ndarray:
    """Notes joined by glides, with 5 to 7 Hz vibrato, 24 harmonics, two moving formants, and pauses."""
    frames = int(SECONDS * rate)
    time = np.arange(frames) / rate
    pitch, loudness = np.zeros(frames), np.zeros(frames)
    at, note = 0, float(rng.integers(52, 68))
    while at < frames:
        length = int(rng.uniform(0.25, 0.9) * rate)
        stop = min(at + length, frames)
        last, note = note, float(np.clip(note + rng.integers(-4, 5), 50, 70))
        inside = np.arange(stop - at) / rate
        pitch[at:stop] = note + (last - note) * np.exp(-inside / 0.06)
        if rng.random() < 0.85:
            loudness[at:stop] = np.minimum(1, inside / 0.03) * np.minimum(1, (length / rate - inside) / 0.05)
        at = stop
    pitch += rng.uniform(0.2, 0.5) * np.sin(2 * np.pi * rng.uniform(5, 7) * time + rng.uniform(0, 6))
    f0 = _hz(pitch)
    phase = 2 * np.pi * np.cumsum(f0) / rate
    slow = 2 * np.pi * rng.uniform(0.3, 1.0, 2)[:, None] * time + rng.uniform(0, 6, 2)[:, None]
    first, second = 550 + 250 * np.sin(slow[0]), 1500 + 600 * np.sin(slow[1])  # Hz
    audio = np.zeros(frames)
    for harmonic in range(1, 25):
        f = harmonic * f0
        formants = np.exp(-(((f - first) / 180) ** 2)) + 0.6 * np.exp(-(((f - second) / 260) ** 2)) + 0.06
        audio += formants * (f < 0.48 * rate) * np.sin(harmonic * phase)
    return audio * loudness


def _chords(rate: int, rng: np.random.Generator) -> np.ndarray:
    """Three or four strings plucked together, each with 10 decaying harmonics, slightly inharmonic."""
    frames = int(SECONDS * rate)
    audio = np.zeros(frames)
    beat = rng.uniform(0.35, 0.6)  # seconds
    at = rng.uniform(0, beat)
    while at < SECONDS:
        root = int(rng.integers(45, 60))
        for interval in (0, int(rng.choice([3, 4])), 7, 12)[: rng.integers(3, 5)]:
            start = int((at + rng.uniform(0, 0.02)) * rate)
            time = np.arange(max(0, min(frames - start, int(1.5 * rate)))) / rate
            f0 = _hz(root + interval)
            for harmonic in range(1, 11):
                f = harmonic * f0 * np.sqrt(1 + 2e-4 * harmonic**2)
                if f < 0.48 * rate:
                    decay = np.exp(-time * (2.5 + 0.9 * harmonic))
                    audio[start : start + len(time)] += decay * np.sin(2 * np.pi * f * time) / harmonic
        at += beat * rng.choice([1, 1, 2])
    return audio


def _drums(rate: int, rng: np.random.Generator) -> np.ndarray:
    """Kick, snare and hi-hat on a grid of eighths."""
    frames = int(SECONDS * rate)
    audio = np.zeros(frames)
    eighth = rng.uniform(0.18, 0.3)  # seconds
    kicks, busy = rng.random(8) < 0.4, rng.uniform(0.6, 1.0)

    def hit(at: float, sound: np.ndarray, gain: float) -> None:
        start = int(at * rate)
        sound = sound[: max(0, frames - start)]
        audio[start : start + len(sound)] += gain * sound

    time = np.arange(int(0.3 * rate)) / rate
    for count in range(int(SECONDS / eighth)):
        at, place = count * eighth, count % 8
        if place == 0 or kicks[place]:
            hit(at, np.sin(2 * np.pi * (50 * time + 6 * (1 - np.exp(-time * 25)))) * np.exp(-time * 14), 1.0)
        if place in (2, 6):
            noise = rng.standard_normal(len(time)) * 0.5 + np.sin(2 * np.pi * 190 * time)
            hit(at, noise * np.exp(-time * 22), rng.uniform(0.6, 0.9))
        if rng.random() < busy:
            hat = np.diff(rng.standard_normal(len(time) + 1))  # brighter than white
            hit(at, hat * np.exp(-time * 60), rng.uniform(0.2, 0.4))
    return audio


SOURCES = {"voice": _voice, "chords": _chords, "drums": _drums}
