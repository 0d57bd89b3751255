"""What is changed in the sources of a training example: drawn beside the data, applied to the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from separate.audio import frames_at
from separate.config import AugmentConfig, CacheConfig
from separate.data.example import Example
from separate.data.mixing.effects import BANDS, NEAR, Stretch
from separate.data.storage.headers import Headers, audio_files
from separate.data.storage.reading import Reader, Region, Span
from separate.data.tracks import Files, Piece
from separate.errors import DataError, UsageError
from separate.files import cache_folder
from separate.validation import validate

OF_SAMPLES = ("speed", "tempo", "pitch", "equaliser", "reverb")  # these cannot be applied to frames of a spectrogram

EARLY = 0.05  # seconds after the direct sound
DIRECT = 0.0025  # seconds in which the direct sound has its peak


@dataclass
class Changes:
    """What is done to one example, in this order.

    stretch: speed, tempo and pitch, the same for all sources and for the rest of a recorded mixture, which no
    other change touches; curves: gains in dB of an equaliser, (S, BANDS); responses: of rooms, (S, C, L), of unit
    energy; reference_spans: (S, C, 2), start and stop of the samples of each response that the reference is convolved
    with, None for all; matrices: new channels from old ones, (S, C, C); noise: as a source of the example is
    stored, and snr in dB, at which it is added to the mixture.
    """

    matrices: np.ndarray
    stretch: Stretch | None = None
    curves: np.ndarray | None = None
    responses: np.ndarray | None = None
    reference_spans: np.ndarray | None = None
    noise: np.ndarray | None = None
    snr: float = np.inf


class Augment:
    """Draws changes.  Which numbers are drawn does not depend on which changes are asked for, so that adding one leaves
    the others as they were.

    sample_rate in Hz; channels; frames: samples of an example.  reader: reads noise as the sources are read, by default
    from the files.
    """

    def __init__(
        self,
        options: AugmentConfig,
        sample_rate: int,
        channels: int,
        frames: int,
        cache: CacheConfig | None = None,
        reader: Reader | None = None,
    ) -> None:
        _check(options, channels)
        if cache is not None and cache.kind == "spectrogram":
            asked = [name for name in OF_SAMPLES if getattr(options, name)]
            if asked:
                raise UsageError(
                    f"augment.{asked[0]} changes samples, and cache=spectrogram gives frames of a transform; use "
                    f"cache=audio, or leave {' and '.join(f'augment.{name}' for name in asked)} out"
                )
        self.options = options
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = frames
        self.reader = reader or Reader(sample_rate, channels)
        memory = cache_folder(cache.folder if cache else None) / "headers"
        self.noise = _files(options.noise, "augment.noise", memory)
        self.rooms = _files(options.reverb, "augment.reverb", memory)

    @property
    def active(self) -> bool:
        return self.options != AugmentConfig(shift=self.options.shift)

    @property
    def longest(self) -> float:
        """How many times the samples of an example may be read for it."""
        options = self.options
        if not (options.speed or options.tempo or options.pitch):
            return 1.0
        speed, tempo, lowest = max(options.speed or [1.0]), max(options.tempo or [1.0]), min(options.pitch or [0.0])
        rounded = (tempo * 2 ** (-lowest / 12) + 1) / self.frames  # up to the next sample
        return max(1.0, speed * tempo * (1 + NEAR)) + rounded

    def draw(self, rng: np.random.Generator, example: Example) -> Changes:
        sources, options = len(example.sources), self.options
        matrices = self._matrices(rng, sources, example.levels)
        speed, tempo, pitch, sure = rng.random(4)
        curves, echoes = rng.random((sources, BANDS)), rng.random((sources, 2))
        snr, *place = rng.random(3)
        changes = Changes(matrices)
        if options.speed or options.tempo or options.pitch:
            s, t, p = (_between(b or [o, o], x) for b, o, x in (
                (options.speed, 1.0, speed), (options.tempo, 1.0, tempo), (options.pitch, 0.0, pitch)
            ))  # fmt: skip
            changes.stretch = Stretch.of(self.frames, float(s), float(t), float(p))
        if options.equaliser:
            changes.curves = (options.equaliser * (2 * curves - 1)).astype(np.float32)
        if self.rooms:
            responses, reference_spans = zip(*(self._response(chance, which) for chance, which in echoes), strict=True)
            changes.responses = np.stack(responses)
            changes.reference_spans = None if options.reverb_reference == "reverberant" else np.stack(reference_spans)
        if self.noise:
            changes.noise = self._noise(*place)
            changes.snr = float(_between(options.noise_snr, snr)) if sure < options.noise_probability else np.inf
        return changes

    def _matrices(self, rng: np.random.Generator, sources: int, levels: Sequence[float] | None) -> np.ndarray:
        """Gain, polarity, channels and dropout.  levels: LUFS of each source, -inf for a silent one."""
        gains, loudness, signs, sides, places, silent = rng.random((6, sources))
        kept = int(rng.integers(sources))  # the one that stays where all would be silent
        options, matrices = self.options, np.tile(np.eye(self.channels, dtype=np.float32), (sources, 1, 1))
        if options.gain:
            matrices *= _column(10 ** (_between(options.gain, gains) / 20))
        if options.loudness:
            assert levels is not None
            change = np.where(np.isfinite(levels), _between(options.loudness, loudness) - levels, 0.0)
            matrices *= _column(10 ** (change / 20))
        matrices *= _column(np.where(signs < options.polarity, -1, 1))
        if options.swap:
            matrices = np.where(_column(sides < options.swap), matrices[:, ::-1], matrices)
        if options.pan:
            angle = (1 + options.pan * (2 * places - 1)) * np.pi / 4  # a quarter circle, its middle is the centre
            matrices *= np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, :, None]
        dropped = silent < options.dropout
        dropped[kept] &= not dropped.all()
        return (matrices * _column(~dropped)).astype(np.float32)

    def _noise(self, which: float, where: float) -> np.ndarray:
        """An excerpt of one of the noises, which goes round where it is shorter."""
        piece = self.noise[int(which * len(self.noise))]
        length = frames_at(piece.info, self.sample_rate)
        grid = self.reader.grid
        region, spans, at = Region((piece,), 0, length), [], 0
        start = grid * int(where * (max(length - self.frames, 0) // grid + 1))
        while at < self.frames:
            spans.append(Span(region, start, at, min(length - start, self.frames - at)))
            at += grid * -(-spans[-1].frames // grid)
            start = 0
        return self.reader.source(spans, self.frames)

    def _response(self, chance: float, which: float) -> tuple[np.ndarray, np.ndarray]:
        """An impulse response (C, L), a unit impulse without a room, and the span (C, 2) for the reference."""
        length = max(1, round(self.options.reverb_seconds * self.sample_rate))
        response = np.eye(1, length, dtype=np.float32).repeat(self.channels, axis=0)
        direct = np.zeros(self.channels, int)
        if chance < self.options.reverb_probability:
            piece = self.rooms[int(which * len(self.rooms))]
            response, direct = _room(piece, self.sample_rate, self.channels, length)
        if self.options.reverb_reference == "dry":
            return response, np.stack([direct, direct + 1], axis=1)
        return response, np.stack([0 * direct, direct + round(EARLY * self.sample_rate) + 1], axis=1)


@lru_cache(maxsize=64)
def _room(piece: Piece, sample_rate: int, channels: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A response (C, L) of unit energy that begins with its direct sound, and the peak (C) of that in each channel.

    The direct sound begins where a channel first comes within 20 dB of its largest sample (ISO 3382-1); its peak is the
    largest sample of the next 2.5 ms, as far as the response has them.  A silent channel has none and does not count.
    """
    whole = Region((piece,), 0, frames_at(piece.info, sample_rate))
    audio = Reader(sample_rate, channels).read(whole, 0, whole.length)
    level = np.abs(audio)
    begins = (level >= 0.1 * level.max(axis=1, keepdims=True)).argmax(axis=1)
    begins = np.where(level.any(axis=1), begins, whole.length - 1)
    first = begins.min()
    audio, level = audio[:, first : first + length], level[:, first : first + length]
    begins = np.minimum(begins - first, length - 1)
    within = round(DIRECT * sample_rate) + 1
    direct = np.array([start + one[start : start + within].argmax() for one, start in zip(level, begins, strict=True)])
    found = np.zeros((channels, length), np.float32)
    found[:, : audio.shape[1]] = audio / np.sqrt(np.mean(np.sum(audio**2, axis=1)) + 1e-12)
    return found, direct


def _files(folder: str | None, key: str, memory: Path) -> Files:
    """The audio files under a folder that an option names; DataError for all that cannot be read.

    memory: the folder where their headers are remembered.
    """
    if folder is None:
        return Files([])
    root = Path(folder).expanduser()
    paths = audio_files(root) if root.is_dir() else []
    if not paths:
        raise DataError(f"{key}={folder} is no folder with audio files in it")
    infos, problems = Headers(memory, root).read(paths)
    problems += [f"{path}: holds no samples" for path, info in infos.items() if info.frames == 0]
    if problems:
        raise DataError.of_files(f"{len(problems)} bad files in {key}", problems, "Mend or remove them.")
    return Files([Piece(path, infos[path]) for path in paths])


def _check(options: AugmentConfig, channels: int) -> None:
    """UsageError for values that mean nothing."""
    validate(AugmentConfig, vars(options), "augment.")
    for name in ("gain", "loudness", "speed", "tempo", "pitch", "noise_snr"):
        bounds = getattr(options, name)
        if bounds is not None and not (len(bounds) == 2 and bounds[0] <= bounds[1]):
            example = "[0.9,1.1]" if name in ("speed", "tempo") else "[-6,6]"
            raise UsageError(f"augment.{name}={list(bounds)} must be the least and the most, e.g. {example}")
    for name in ("swap", "pan"):
        if channels != 2 and getattr(options, name):
            raise UsageError(f"augment.{name} is of left and right, and data.channels={channels}; set it to 0")


def _between(bounds: Sequence[float], share: Any) -> Any:
    low, high = bounds
    return low + (high - low) * share


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]
