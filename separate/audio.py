"""Audio files and sample rates: probe, read a span, write, resample.  Files go through soundfile alone.

A path may lead into a tar file, to a member that lies there as it is: SHARD.tar/OFFSET+SIZE/NAME, in bytes.
"""

from __future__ import annotations

import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile

from separate.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".caf", ".w64", ".rf64", ".opus")
LOWPASS_WIDTH = 64  # zero crossings of the resampling kernel on each side
ROLLOFF = 0.9475937167399596  # of the Nyquist frequency, and the Kaiser window's beta: resampy's kaiser_best
BETA = 14.769656459379492
LARGEST_KERNEL = 2**22  # coefficients; 16 MB, and ten times that while torchaudio computes them
GROUP = 64  # output samples of one matrix product, where each has weights of its own
TABLE = 4096  # entries of the tabulated kernel for each zero crossing: linear interpolation errs by less than 1e-7
PRODUCTS = 2**20  # numbers of a block where each output sample has weights of its own
RATES = (1000, 1_000_000)  # Hz, the lowest and the highest that a header may claim
MOST_CHANNELS = 64  # ambisonics of the 7th order; more come from damaged headers
MP3_DENSITY = 24  # frames in a byte at 8 kbit/s and 24 kHz, MP3's largest ratio


@dataclass(frozen=True)
class Info:
    """frames: samples in each channel; sample_rate in Hz; subtype: libsndfile's name of the sample format.

    container: its name of the file format, which the file's ending need not tell; empty where it is not known.
    """

    frames: int
    sample_rate: int
    channels: int
    subtype: str = "PCM_16"
    container: str = field(default="", compare=False)

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    @property
    def floating(self) -> bool:
        """Whether samples can be NaN."""
        return self.subtype in ("FLOAT", "DOUBLE")


class UnreadableError(DataError):
    """One file that is no audio, or not whole; the message is the reason, without the path."""


class NonFiniteError(UnreadableError):
    """A file with NaN or infinite samples."""


class Member(NamedTuple):
    """Where a member of a tar file lies."""

    file: str
    offset: int
    size: int
    name: str = ""

    @property
    def path(self) -> str:
        return f"{self.file}/{self.offset}+{self.size}/{self.name}"


_MEMBER = re.compile(r"(.+?\.tar)/(\d+)\+(\d+)/(.+)")


def member_of(path: str) -> Member | None:
    """What a path leads to, where that is a member of a tar file."""
    found = _MEMBER.match(path) if ".tar/" in path else None
    return Member(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def shown(path: str | Path) -> str:
    """A path as people know it, without the place in a tar file."""
    member = member_of(str(path))
    return f"{member.file}/{member.name}" if member else str(path)


class _Bytes:
    """A part of a file, as a file."""

    def __init__(self, part: Member) -> None:
        self.file = os.open(part.file, os.O_RDONLY)
        self.offset, self.size = part.offset, part.size
        self.at = 0

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        found = os.pread(self.file, max(min(size, self.size - self.at), 0), self.offset + self.at)
        self.at += len(found)
        return found

    def readinto(self, buffer: memoryview) -> int:
        wanted = memoryview(buffer)[: max(self.size - self.at, 0)]
        count = os.preadv(self.file, [wanted], self.offset + self.at)
        self.at += count
        return count


def file_name(path: str | Path) -> str | bytes:
    """A path in the form that soundfile can open, even if its name is not valid in the locale's encoding."""
    return os.fsencode(path) if os.name == "posix" else str(path)


@contextmanager
def _sound(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """A path opened; UnreadableError, without the path, where it cannot be."""
    part = member_of(str(path))
    try:
        if part is None:
            with soundfile.SoundFile(file_name(path)) as file:
                yield file
        else:
            with _Bytes(part) as bytes_, soundfile.SoundFile(bytes_) as file:
                yield file
    except soundfile.LibsndfileError as error:
        raise UnreadableError(f"not readable as audio ({str(error.error_string).strip().rstrip('.')})") from None
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror or error})") from None


def probe(path: str | Path) -> Info:
    """Read a file's header and see that its last sample is there.  UnreadableError says why not."""
    try:
        part = member_of(str(path)) or Member(str(path), 0, Path(path).stat().st_size)
        with _Bytes(part) as bytes_:
            _refuse_truncated_wav(bytes_)
    except (OSError, ValueError) as error:  # an impossible file name raises ValueError
        raise UnreadableError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with _sound(path) as file:
        info = Info(file.frames, file.samplerate, file.channels, file.subtype, file.format)
        if reason := impossible(info, part.size):  # before memory is allocated for it
            raise UnreadableError(reason)
        if info.frames and file.format != "MP3":  # MP3 seeks by decoding from the start
            file.seek(info.frames - 1)
            if len(file.read(1)) != 1:
                raise UnreadableError("truncated: its last sample is missing")
    return info


def impossible(info: Info, size: int) -> str:
    """What a header claims that no file of `size` bytes has, and only a damaged header says; empty where nothing."""
    low, high = RATES
    if not low <= info.sample_rate <= high:
        return (
            f"its header claims a sample rate of {info.sample_rate} Hz, and files of {low} to {high} Hz are read; "
            f"mend the header, or resample the file"
        )
    if not 1 <= info.channels <= MOST_CHANNELS:
        return (
            f"its header claims {info.channels} channels, and up to {MOST_CHANNELS} are read; mend the header, or "
            f"split the file"
        )
    if info.frames < 0:
        return f"its header claims {info.frames} samples"
    most = _most_frames(info, size)
    if most is not None and info.frames > most:
        return f"its header claims {info.frames} samples, and its {size} bytes hold {most} at most"
    return ""


def _most_frames(info: Info, size: int) -> int | None:
    """The most samples that a file of `size` bytes can hold; None where silence compresses to next to nothing.

    FLAC has the subtypes of uncompressed samples, and so is told by its container.
    """
    if info.container == "MP3":
        return MP3_DENSITY * size
    width = None if info.container == "FLAC" else SAMPLE_BYTES.get(info.subtype)
    return size // (width * info.channels) if width else None


def _refuse_truncated_wav(file: _Bytes) -> None:
    """libsndfile reads a cut WAV as if it had been meant to be short; its chunk sizes tell."""
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    while len(header := file.read(8)) == 8:
        name, length = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"data":
            missing = file.tell() + length - file.size
            if missing > 0 and length < 0xFFFFFF00:  # such a length is a stream's "unknown"
                raise UnreadableError(f"truncated: {missing} of {length} bytes of samples are missing")
            return
        file.seek(length + length % 2, os.SEEK_CUR)


def read(path: str | Path, start: int, frames: int, pcm: bool = False, info: Info | None = None) -> np.ndarray:
    """Samples start to start + frames of a file at its own rate -> (C, frames) float32; NonFiniteError for NaN.

    pcm: as int16, of a file with 16-bit samples.  info: its header as read before;
    UnreadableError where rate or channels differ.
    """
    try:
        with _sound(path) as file:
            if info is not None and (file.samplerate, file.channels) != (info.sample_rate, info.channels):
                raise UnreadableError(
                    f"holds {file.channels} channels at {file.samplerate} Hz, and held {info.channels} at "
                    f"{info.sample_rate} Hz when its header was read; touch the file, so that it is read again"
                )
            if file.frames < start + frames:
                raise UnreadableError(f"truncated after {file.frames} samples")
            file.seek(start)
            if file.subtype == "PCM_16":  # the same numbers as libsndfile's own conversion, several times faster
                audio = file.read(frames, dtype="int16", always_2d=True).T
                audio = audio if pcm else audio * np.float32(2**-15)
            else:
                audio = file.read(frames, dtype="float32", always_2d=True).T
    except UnreadableError as error:
        raise UnreadableError(f"{shown(path)}: {error}") from None
    if audio.shape[1] < frames:
        raise UnreadableError(f"{shown(path)}: truncated after {start + audio.shape[1]} samples")
    if not pcm and not np.isfinite(audio).all():
        where = start + int(np.flatnonzero(~np.isfinite(audio).all(axis=0))[0])
        raise NonFiniteError(f"{shown(path)}: NaN or infinite sample at {where}")
    return audio


def read_span(
    path: str | Path, info: Info, start: int, frames: int, sample_rate: int, channels: int, pcm: bool = False
) -> np.ndarray:
    """Samples start to start + frames, counted at `sample_rate` -> (channels, frames) float32.

    pcm: as int16, of a file with 16-bit samples at this rate and of these channels.

    The file is read by seeking, with as much beside the span as the resampling kernel reaches, so that spans of a
    file agree with the whole.  Past its end there is silence.
    """
    kernel = None if sample_rate == info.sample_rate else _resampler(info.sample_rate, sample_rate)
    first, stop = (start, start + frames) if kernel is None else kernel.reach(start, frames)
    first, stop = max(first, 0), min(stop, info.frames)
    if stop <= first:
        return np.zeros((channels, frames), np.int16 if pcm else np.float32)
    audio = read(path, first, stop - first, pcm, info)
    if kernel is not None:
        audio = convert_channels(audio, min(channels, len(audio)))  # fewer channels are less to resample
        audio = kernel.at(_tensor(audio), first, start, frames).numpy()
    audio = convert_channels(audio, channels)
    return np.pad(audio, ((0, 0), (0, frames - audio.shape[1]))) if audio.shape[1] < frames else audio


def frames_at(info: Info, sample_rate: int) -> int:
    """Length of a file in whole samples at another rate."""
    return info.frames * sample_rate // info.sample_rate


def convert_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """(C, T) -> (channels, T): the mean for mono, a copy in each for more; ValueError for other conversions."""
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return (audio.T @ np.full(len(audio), 1 / len(audio), audio.dtype))[None]  # faster than a mean across rows
    if audio.shape[0] == 1:
        return np.repeat(audio, channels, axis=0)
    raise ValueError(f"{audio.shape[0]} channels do not become {channels}")


def resample(audio: Tensor, old: int, new: int) -> Tensor:
    """(..., T) at `old` Hz -> (..., ceil(T new / old)) at `new` Hz, by a Kaiser-windowed sinc (Smith, 2002)."""
    return audio if old == new else _resampler(old, new)(audio)


class _Resampler:
    """torchaudio's kernel, applied to blocks of about 128 samples as one matrix product.

    The kernel turns `old` samples into `new` at every step of `old`.  Where these are few, as from 44.1 to 22.05 kHz,
    a convolution with it runs at a fraction of the speed, and so several steps are taken as one.
    """

    def __init__(self, old: int, new: int) -> None:
        import torch
        from torchaudio.transforms import Resample

        self.old, self.new = old, new
        window = {"lowpass_filter_width": LOWPASS_WIDTH, "rolloff": ROLLOFF, "beta": BETA}
        made = Resample(old, new, "sinc_interp_kaiser", **window)
        kernel = made.kernel[:, 0]  # (new, taps)
        self.width, taps = made.width, kernel.shape[1]
        self.steps = max(1, 128 // self.old)
        self.span = self.old * (self.steps - 1) + taps  # samples that a block sees
        self.matrices: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # kept, since moving it makes the host wait
        with torch.inference_mode(False):  # so that a gradient can go through it later
            self.matrix = torch.zeros(self.span, self.steps * self.new)
        for step in range(self.steps):
            rows = slice(step * self.old, step * self.old + taps)
            self.matrix[rows, step * self.new : (step + 1) * self.new] = kernel.T

    def __call__(self, audio: Tensor) -> Tensor:
        import torch

        frames = ceil(audio.shape[-1] * self.new / self.old)
        block = self.steps * self.old
        blocks = ceil(frames / (self.steps * self.new))
        after = (blocks - 1) * block + self.span - self.width - audio.shape[-1]
        seen = torch.nn.functional.pad(audio, (self.width, max(after, 0))).unfold(-1, self.span, block)[..., :blocks, :]
        place = (audio.device, audio.dtype)
        if place not in self.matrices:
            with torch.inference_mode(False):
                self.matrices[place] = self.matrix.to(*place)
        return (seen @ self.matrices[place]).flatten(-2)[..., :frames]

    def reach(self, start: int, frames: int) -> tuple[int, int]:
        """The input samples, first to stop, that output samples start to start + frames depend on."""
        beside = ceil(LOWPASS_WIDTH * max(1, self.old / self.new) / ROLLOFF / self.old) + 1  # in units of `old`
        first = max(start // self.new - beside, 0)
        return first * self.old, (ceil((start + frames) / self.new) + beside) * self.old

    def at(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        """Output samples start to start + frames.  audio: (..., T), the input that `reach` names, from `first` on."""
        return self(audio)[..., start - first // self.old * self.new :][..., :frames]


class _Windowed(ABC):
    """The same kernel for ratios of large integers, for which one matrix would be too large (Smith, 2002)."""

    most: int  # output samples computed at a time

    def __init__(self, old: int, new: int) -> None:
        self.old, self.new = old, new
        self.cutoff = min(old, new) * ROLLOFF / old  # zero crossings in a sample
        self.width = ceil(LOWPASS_WIDTH / self.cutoff)  # samples that it reaches to each side

    def __call__(self, audio: Tensor) -> Tensor:
        return self.at(audio, 0, 0, ceil(audio.shape[-1] * self.new / self.old))

    def reach(self, start: int, frames: int) -> tuple[int, int]:
        """As in `_Resampler`."""
        return start * self.old // self.new - self.width, (start + frames - 1) * self.old // self.new + self.width + 2

    def at(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        """As in `_Resampler`; `audio` counts as silent beyond its ends, and no output starts after its end."""
        import torch

        frames = min(frames, ceil((first + audio.shape[-1]) * self.new / self.old) - start)
        blocks = [
            self._block(audio, first, start + done, min(self.most, frames - done))
            for done in range(0, max(frames, 0), self.most)
        ]
        return torch.cat(blocks, dim=-1) if blocks else audio[..., :0]

    @abstractmethod
    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        """At most `most` output samples from `start` on."""

    def _kernel(self, x: Tensor) -> Tensor:
        """The kernel at x zero crossings, in float64; 0 from the last zero crossing on."""
        import torch

        window = torch.special.i0(BETA * (1 - (x / LOWPASS_WIDTH).square()).clamp_min(0).sqrt())
        top = torch.special.i0(torch.tensor(BETA, dtype=torch.float64))
        return torch.where(x.abs() < LOWPASS_WIDTH, torch.sinc(x) * window / top * self.cutoff, 0)


def _cut(audio: Tensor, first: int, low: int, high: int) -> Tensor:
    """Samples low to high of a recording that is `audio` from `first` on and silent elsewhere."""
    import torch

    seen = audio[..., max(low - first, 0) : max(high - first, 0)]
    before = min(max(first - low, 0), high - low)
    return torch.nn.functional.pad(seen, (before, high - low - before - seen.shape[-1]))


class _Polyphase(_Windowed):
    """Weights of the `new` positions after which they repeat, for ratios such as 44,100 to 8,192.

    Each GROUP of output samples is one matrix product.  A period has as many matrices as groups.
    """

    def __init__(self, old: int, new: int) -> None:
        import torch

        super().__init__(old, new)
        groups, self.span = _groups(old, new, self.width)
        self.most = max(1, PRODUCTS // (groups * self.span)) * new
        self.moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # kept, since moving it makes the host wait
        with torch.inference_mode(False):  # so that a gradient can go through it later
            self.matrices = torch.empty(groups, self.span, GROUP)
            for group, matrix in enumerate(self.matrices):
                places = torch.arange(group * GROUP, (group + 1) * GROUP, dtype=torch.float64) * old / new
                seen = torch.arange(self.span) + group * GROUP * old // new - self.width
                matrix.copy_(self._kernel((seen[:, None] - places) * self.cutoff))

    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        import torch

        begin, end = start // self.new, -(-(start + frames) // self.new)  # periods
        groups = torch.arange(len(self.matrices), device=audio.device)
        at = (groups * GROUP * self.old).div(self.new, rounding_mode="floor")  # first sample of each group
        at = at[:, None] + torch.arange(end - begin, device=audio.device) * self.old  # (groups, periods)
        low = begin * self.old - self.width
        seen = _cut(audio, first, low, low + (end - begin) * self.old + self.span)
        place = (audio.device, audio.dtype)
        if place not in self.moved:
            with torch.inference_mode(False):
                self.moved[place] = self.matrices.to(*place)
        found = seen.unfold(-1, self.span, 1)[..., at, :] @ self.moved[place]  # (..., groups, periods, GROUP)
        periods = found.transpose(-3, -2).flatten(-2)[..., : self.new].flatten(-2)
        return periods[..., start - begin * self.new :][..., :frames]


class _Interpolator(_Windowed):
    """Weights read from a table at any position, for ratios such as 44,101 to 8,000.

    Memory does not grow with the rates, and each sample at the higher rate costs about 135 products.
    """

    def __init__(self, old: int, new: int) -> None:
        import torch

        super().__init__(old, new)
        self.most = max(1, PRODUCTS // (2 * self.width + 2))
        self.table = self._kernel(torch.arange(LOWPASS_WIDTH * TABLE + 1, dtype=torch.float64) / TABLE)
        self.slopes = self.table.diff(append=self.table[-1:])

    def _block(self, audio: Tensor, first: int, start: int, frames: int) -> Tensor:
        import torch

        low, high = self.reach(start, frames)
        device = torch.device("cpu") if audio.device.type == "mps" else audio.device  # MPS has no float64
        taps = torch.arange(-self.width, self.width + 2, device=device)
        places = torch.arange(start, start + frames, device=device) * self.old
        whole = places.div(self.new, rounding_mode="floor")
        fraction = (places - whole * self.new).double() / self.new
        distance = (taps - fraction[:, None]).abs_().mul_(self.cutoff * TABLE).clamp_(max=LOWPASS_WIDTH * TABLE)
        entry = distance.int()  # (frames, taps)
        between = distance.sub_(entry).to(audio.dtype)
        slopes, table = (values.to(device, audio.dtype)[entry] for values in (self.slopes, self.table))
        weights = between.mul_(slopes).add_(table).to(audio)
        seen = _cut(audio, first, low, high).unfold(-1, len(taps), 1)
        return torch.einsum("...nt,nt->...n", seen[..., (whole - whole[0]).to(audio.device), :], weights)


def _groups(old: int, new: int, width: int) -> tuple[int, int]:
    """How many groups of output samples a period has, and how many input samples each of them sees."""
    return -(-new // GROUP), (GROUP - 1) * old // new + 2 * width + 3


@lru_cache(maxsize=8)
def _resampler(old: int, new: int) -> _Resampler | _Windowed:
    common = gcd(old, new)
    old, new = old // common, new // common
    width = ceil(LOWPASS_WIDTH * max(1, old / new) / ROLLOFF)
    steps = max(1, 128 // old)
    coefficients = max(new * (old + 2 * width), steps * new * (old * steps + 2 * width))
    if coefficients <= LARGEST_KERNEL:
        return _Resampler(old, new)
    groups, span = _groups(old, new, width)
    return _Polyphase(old, new) if groups * span * GROUP <= LARGEST_KERNEL else _Interpolator(old, new)


def _tensor(audio: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(audio)


def create(path: Path, frames: int, sample_rate: int, channels: int, subtype: str = "FLOAT") -> soundfile.SoundFile:
    """Open a WAV file to write `frames` samples to, RF64 where they would pass 4 GiB; blocks are (n, C)."""
    large = frames * channels * 4 > 2**32 - 2**16
    return soundfile.SoundFile(file_name(path), "w", sample_rate, channels, subtype, format="RF64" if large else "WAV")
