"""Readers of signals, from files or from the cache, as samples or as STFT frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from separate.audio import NonFiniteError, UnreadableError, frames_at, read_pcm, read_span
from separate.data.storage.cache import VERSION, Cache, read_frames
from separate.data.tracks import Piece, Signal
from separate.errors import DataError

if TYPE_CHECKING:
    from separate.stft import STFT

PCM = 2.0**-15  # value of one step of a 16-bit sample
PCM_WITH_HEADROOM = 2.0**-14  # the same for computed samples, which may exceed 1
BLOCK = 2**20  # samples computed at a time


class Region(NamedTuple):
    """Samples first to first + length of a signal at the rate of the data set, and silence around them."""

    signal: Signal
    first: int
    length: int


class Span(NamedTuple):
    """Samples start to start + frames of a region, which are added to an example from sample `at` on with a gain."""

    region: Region
    start: int
    at: int
    frames: int
    gain: float = 1.0


class Reader:
    """Reads files.

    pcm: every signal is one file of 16-bit samples at this rate with these channels, and is read as int16.
    scale: the value of one step of a sample.  fetch: called with the path of a file before it is read.
    """

    spectral = False  # whether `source` returns spectrograms
    grid = 1  # spans begin at multiples of this number of samples

    def __init__(
        self, sample_rate: int, channels: int, pcm: bool = False, fetch: Callable[[str], None] | None = None
    ) -> None:
        self.sample_rate = sample_rate
        self.channels = channels
        self.pcm = pcm
        self.fetch = fetch
        self.dtype = np.dtype(np.int16 if pcm else np.float32)
        self.scale = PCM if pcm else 1.0

    def read(self, region: Region, start: int, frames: int) -> np.ndarray:
        """Samples of a region -> (C, frames) in `dtype`, zero outside it."""
        first, last = max(start, 0), min(start + frames, region.length if region.signal else 0)
        if (first, last) == (start, start + frames):
            return self._read_inside(region, start, frames)
        audio = np.zeros((self.channels, frames), self.dtype)
        if last > first:
            audio[:, first - start : last - start] = self._read_inside(region, first, last - first)
        return audio

    def _read_inside(self, region: Region, start: int, frames: int) -> np.ndarray:
        return self._read_files(region.signal, region.first + start, frames)

    def _read_files(self, signal: Signal, start: int, frames: int) -> np.ndarray:
        spans = [self._read_file(piece, start, frames) for piece in signal]
        return spans[0] if len(spans) == 1 else np.sum(spans, axis=0)

    def _read_file(self, piece: Piece, start: int, frames: int) -> np.ndarray:
        read = partial(read_pcm, *piece, start, frames)
        if not self.pcm:
            read = partial(read_span, *piece, start, frames, self.sample_rate, self.channels)
        if self.fetch is None:
            return read()
        self.fetch(piece.path)
        try:
            return read()
        except NonFiniteError:
            raise
        except UnreadableError:  # another process evicted it
            self.fetch(piece.path)
            return read()

    def samples(self, spans: Sequence[Span], frames: int) -> np.ndarray:
        """One source of an example from its spans, (C, frames) in `dtype`, or in float32 if spans have gains."""
        if len(spans) == 1 and spans[0].frames == frames and spans[0].gain == 1:
            return self.read(spans[0].region, spans[0].start, frames)
        plain = all(span.gain == 1 for span in spans)
        audio = np.zeros((self.channels, frames), self.dtype if plain else np.float32)
        for span in spans:
            found = self.read(span.region, span.start, span.frames)
            audio[:, span.at : span.at + span.frames] = found if plain else found * np.float32(self.scale * span.gain)
        return audio

    def source(self, spans: Sequence[Span], frames: int) -> np.ndarray:
        """One source of an example in the encoding of the reader, here samples (C, frames)."""
        return self.samples(spans, frames)


class CachedReader(Reader):
    """Reads each signal once as a whole, at the rate and channels of the data set, and from then on from the cache.

    files: reads signals that are not cached.  dtype: float32 is exact, float16 keeps 11 bits, int16 keeps 16.
    content: identify files by their content instead of their path and time.
    """

    def __init__(self, files: Reader, cache: Cache, dtype: str, content: bool = False) -> None:
        super().__init__(files.sample_rate, files.channels, fetch=files.fetch)
        self.files = files
        self.cache = cache
        self.content = content
        self.dtype = np.dtype(dtype)
        self.scale = 1.0 if dtype != "int16" else PCM if files.pcm else PCM_WITH_HEADROOM

    def _read_inside(self, region: Region, start: int, frames: int) -> np.ndarray:
        found = read_frames(self.cached(region.signal), region.first + start, region.first + start + frames)
        return np.pad(found, ((0, 0), (0, frames - found.shape[1]))) if found.shape[1] < frames else found

    def cached(self, signal: Signal) -> np.ndarray:
        """A whole signal (C, T), memory-mapped; added to the cache if it is missing."""
        length = max((frames_at(piece.info, self.sample_rate) for piece in signal), default=0)
        whole = Region(signal, 0, length)
        facts = {
            "kind": "audio",
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "dtype": self.dtype.name,
            "scale": self.scale,
        }
        return self._entry(signal, facts, (self.channels, length), self.dtype, partial(self._blocks, whole))

    def _entry(
        self,
        signal: Signal,
        facts: dict[str, object],
        shape: Sequence[int],
        dtype: np.dtype,
        blocks: Callable[[], Iterator[np.ndarray]],
    ) -> np.ndarray:
        """The array of the entry with these facts; added from `blocks` (C, n, ...) if it is missing."""
        facts = {**facts, "from": [self.cache.identity(path, self.content) for path, _ in signal]}
        key = hashlib.sha256(json.dumps([VERSION, facts], sort_keys=True).encode()).hexdigest()
        array = self.cache.open(key)
        if array is None:
            self.cache.add(key, shape, dtype, blocks(), {**facts, "paths": [path for path, _ in signal]})
            array = self.cache.open(key)
        if array is None:  # another process evicted it
            array = np.concatenate(list(blocks()), axis=1)
        return array

    def _blocks(self, whole: Region) -> Iterator[np.ndarray]:
        for start in range(0, whole.length, BLOCK):
            audio = self.files.read(whole, start, min(BLOCK, whole.length - start))
            if audio.dtype == self.dtype:
                yield audio
            elif self.dtype == np.int16:
                yield _to_int16(audio / self.scale, whole)
            else:
                yield (audio * np.float32(self.files.scale)).astype(self.dtype)


def _to_int16(steps: np.ndarray, whole: Region) -> np.ndarray:
    rounded = np.rint(steps)
    if np.abs(rounded).max(initial=0) > 2**15 - 1:
        raise DataError(
            f"{whole.signal[0].path} has samples beyond twice full scale, which cache.dtype=int16 cannot hold; use "
            f"cache.dtype=float16 or float32"
        )
    return rounded.astype(np.int16)


class SpectrogramReader(CachedReader):
    """Reads STFT frames of whole signals; their samples are cached too.

    A frame across an edge of an excerpt differs from the frame of the whole signal, and is computed from the samples.
    Spans begin at multiples of the hop, in their regions and in the example.
    """

    spectral = True

    def __init__(self, files: Reader, cache: Cache, dtype: str, content: bool, stft: STFT) -> None:
        super().__init__(files, cache, dtype, content)
        self.stft = stft
        self.grid = stft.hop
        self._stored = np.dtype(np.complex64 if dtype == "float32" else np.float16)

    def source(self, spans: Sequence[Span], frames: int) -> np.ndarray:
        """Frames of one source of an example: (C, N, F) complex64 or, as float16, (C, N, F, 2)."""
        n_fft, hop = self.stft.n_fft, self.stft.hop
        count = 1 + -(-frames // hop)
        found = np.empty(self._shape(count), self._stored)
        fresh = np.ones(count, bool)
        for span in spans:
            first = -(-(span.at + n_fft // 2) // hop)  # frame n begins at sample n * hop - n_fft // 2
            last = (span.at + span.frames - n_fft + n_fft // 2) // hop + 1
            if last > first:
                offset = (span.start - span.at) // hop
                cached = read_frames(self.spectrogram(span.region), offset + first, offset + last)
                found[:, first:last] = cached if span.gain == 1 else cached * np.float32(span.gain)
                fresh[first:last] = False
        edges = np.flatnonzero(np.diff(fresh, prepend=False, append=False))
        if len(edges):
            read = partial(self._part, spans[0]) if len(spans) == 1 else partial(_within, self.samples(spans, frames))
            for first, last in edges.reshape(-1, 2).tolist():
                found[:, first:last] = self._transform(read, first, last)
        return found

    def _part(self, span: Span, start: int, length: int) -> np.ndarray:
        """Samples start to start + length (C, length) of an example with one span; zero outside the span."""
        cut = Region(span.region.signal, span.region.first + span.start, min(span.frames, span.region.length))
        audio = self.read(cut, start - span.at, length)
        return audio if span.gain == 1 else audio * np.float32(span.gain)

    def spectrogram(self, region: Region) -> np.ndarray:
        """The memory-mapped STFT of a region in the form of `source`; added to the cache if it is missing."""
        facts = {
            "kind": "spectrogram",
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "dtype": self.dtype.name,
            "first": region.first,
            "length": region.length,
            "n_fft": self.stft.n_fft,
            "hop": self.stft.hop,
            "window": self.stft.window_name,
        }
        count = 1 + -(-region.length // self.stft.hop)
        step = max(1, BLOCK // self.stft.hop)

        def blocks() -> Iterator[np.ndarray]:
            for first in range(0, count, step):
                yield self._transform(partial(self.read, region), first, min(first + step, count))

        return self._entry(region.signal, facts, self._shape(count), self._stored, blocks)

    def _transform(self, read: Callable[[int, int], np.ndarray], first: int, last: int) -> np.ndarray:
        """Frames first to last of the STFT of the samples that `read(start, length)` returns, in the stored dtype."""
        import torch

        n_fft, hop = self.stft.n_fft, self.stft.hop
        audio = read(first * hop - n_fft // 2, (last - 1 - first) * hop + n_fft).astype(np.float32)
        found = torch.stft(
            torch.from_numpy(audio), n_fft, hop, window=self.stft.window, center=False, return_complex=True
        ).mT.numpy()  # (C, N, F)
        return found if self._stored == np.complex64 else found.view(np.float32).reshape(*found.shape, 2)

    def _shape(self, frames: int) -> tuple[int, ...]:
        shape = (self.channels, frames, self.stft.bins)
        return shape if self._stored == np.complex64 else (*shape, 2)


def _within(audio: np.ndarray, start: int, length: int) -> np.ndarray:
    """Samples start to start + length of (C, T), zero outside it."""
    found = np.zeros((len(audio), length), audio.dtype)
    first, last = max(start, 0), min(start + length, audio.shape[1])
    found[:, first - start : max(last, first) - start] = audio[:, first:last]
    return found
