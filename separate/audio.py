"""Audio files: read headers and spans of samples, write.  soundfile reads and writes all formats.

A path can name an uncompressed member of a tar file: SHARD.tar/OFFSET+SIZE/NAME, in bytes.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile

from separate.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".caf", ".w64", ".rf64", ".opus")
RATES = (1000, 1_000_000)  # Hz, the lowest and the highest sample rate in a header
MOST_CHANNELS = 64  # ambisonics of the 7th order; a header with more is damaged
MP3_DENSITY = 24  # samples per byte at 8 kbit/s and 24 kHz, MP3's largest ratio


@dataclass(frozen=True)
class Info:
    """The header of a file.

    frames: samples in each channel; sample_rate in Hz; subtype: libsndfile's name of the sample format; container:
    libsndfile's name of the file format, empty if unknown; the ending of the file can be wrong.
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
    """A file that is not audio or is incomplete; the message states the reason without the path."""


class NonFiniteError(UnreadableError):
    """A file with NaN or infinite samples."""


class Member(NamedTuple):
    """A member of a tar file: its offset and size in bytes."""

    file: str
    offset: int
    size: int
    name: str = ""

    @property
    def path(self) -> str:
        return f"{self.file}/{self.offset}+{self.size}/{self.name}"


_MEMBER = re.compile(r"(.+?\.tar)/(\d+)\+(\d+)/(.+)")


def member_of(path: str) -> Member | None:
    """The member of a tar file that a path names; None for any other path."""
    found = _MEMBER.match(path) if ".tar/" in path else None
    return Member(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def shown(path: str | Path) -> str:
    """A path for messages, without the position in a tar file."""
    member = member_of(str(path))
    return f"{member.file}/{member.name}" if member else str(path)


class _Slice(io.RawIOBase):
    """A range of bytes in a file, as a file object."""

    def __init__(self, part: Member) -> None:
        self.file = os.open(part.file, os.O_RDONLY)
        self.offset, self.size = part.offset, part.size
        self.position = 0

    def close(self) -> None:
        if not self.closed:
            os.close(self.file)
        super().close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: WriteableBuffer) -> int:
        wanted = memoryview(buffer)[: max(self.size - self.position, 0)]
        count = os.preadv(self.file, [wanted], self.offset + self.position)
        self.position += count
        return count


def file_name(path: str | Path) -> str | bytes:
    """A path for soundfile, also if its name is not valid in the encoding of the locale."""
    return os.fsencode(path) if os.name == "posix" else str(path)


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; UnreadableError if that fails."""
    part = member_of(str(path))
    try:
        with _Slice(part) if part else nullcontext(file_name(path)) as source, soundfile.SoundFile(source) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise UnreadableError(f"not readable as audio ({str(error.error_string).strip().rstrip('.')})") from None
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror or error})") from None


def probe(path: str | Path) -> Info:
    """Read the header of a file and check that its last sample exists; UnreadableError if not."""
    try:
        part = member_of(str(path)) or Member(str(path), 0, Path(path).stat().st_size)
        with _Slice(part) as slice_:
            _refuse_truncated_wav(slice_)
    except (OSError, ValueError) as error:  # an impossible file name raises ValueError
        raise UnreadableError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with _open(path) as file:
        info = Info(file.frames, file.samplerate, file.channels, file.subtype, file.format)
        if reason := impossible(info, part.size):  # before memory is allocated for the samples
            raise UnreadableError(reason)
        if info.frames and file.format != "MP3":  # MP3 seeks by decoding from the start
            file.seek(info.frames - 1)
            if len(file.read(1)) != 1:
                raise UnreadableError("truncated: its last sample is missing")
    return info


def impossible(info: Info, size: int) -> str:
    """The defect of a header in a file of `size` bytes; empty if the header is plausible."""
    low, high = RATES
    if not low <= info.sample_rate <= high:
        return (
            f"its header claims a sample rate of {info.sample_rate} Hz, and files of {low} to {high} Hz are read; "
            f"correct the header, or resample the file"
        )
    if not 1 <= info.channels <= MOST_CHANNELS:
        return (
            f"its header claims {info.channels} channels, and up to {MOST_CHANNELS} are read; correct the header, or "
            f"split the file"
        )
    if info.frames < 0:
        return f"its header claims {info.frames} samples"
    most = _most_frames(info, size)
    if most is not None and info.frames > most:
        return f"its header claims {info.frames} samples, and its {size} bytes hold {most} at most"
    return ""


def _most_frames(info: Info, size: int) -> int | None:
    """The largest number of samples in a file of `size` bytes; None for formats that compress silence without limit.

    FLAC has the subtypes of uncompressed samples, so its container distinguishes it.
    """
    if info.container == "MP3":
        return MP3_DENSITY * size
    width = None if info.container == "FLAC" else SAMPLE_BYTES.get(info.subtype)
    return size // (width * info.channels) if width else None


def _refuse_truncated_wav(file: _Slice) -> None:
    """UnreadableError if a WAV file is shorter than its chunk sizes; libsndfile would read it as a shorter file."""
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    while len(header := file.read(8)) == 8:
        name, length = header[:4], struct.unpack("<I", header[4:])[0]
        if name == b"data":
            missing = file.tell() + length - file.size
            if missing > 0 and length < 0xFFFFFF00:  # larger lengths mark a stream of unknown length
                raise UnreadableError(f"truncated: {missing} of {length} bytes of samples are missing")
            return
        file.seek(length + length % 2, os.SEEK_CUR)


def read(path: str | Path, start: int, frames: int, pcm: bool = False, info: Info | None = None) -> np.ndarray:
    """Samples start to start + frames of a file at its own rate -> (C, frames) float32; NonFiniteError for NaN.

    pcm: return int16; the file must have 16-bit samples.  info: the header from an earlier `probe`; UnreadableError if
    rate or channels have changed since.
    """
    try:
        with _open(path) as file:
            if info is not None and (file.samplerate, file.channels) != (info.sample_rate, info.channels):
                raise UnreadableError(
                    f"holds {file.channels} channels at {file.samplerate} Hz, and held {info.channels} at "
                    f"{info.sample_rate} Hz when its header was read; touch the file, so that it is read again"
                )
            if file.frames < start + frames:
                raise UnreadableError(f"truncated after {file.frames} samples")
            file.seek(start)
            if file.subtype == "PCM_16":  # equals libsndfile's conversion, several times faster
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


def read_span(path: str | Path, info: Info, start: int, frames: int, sample_rate: int, channels: int) -> np.ndarray:
    """Samples start to start + frames, counted at `sample_rate` (Hz) -> (channels, frames) float32.

    Only this span of the file is read, with the samples around it that the resampling kernel covers, so that a span
    equals the same part of the whole resampled file.  Samples past the end are 0.
    """
    first, stop = start, start + frames
    if sample_rate != info.sample_rate:
        import torch

        from separate.resampling import resampler

        kernel = resampler(info.sample_rate, sample_rate)
        first, stop = kernel.reach(start, frames)
    first, stop = max(first, 0), min(stop, info.frames)
    if stop <= first:
        return np.zeros((channels, frames), np.float32)
    audio = read(path, first, stop - first, info=info)
    if sample_rate != info.sample_rate:
        audio = convert_channels(audio, min(channels, len(audio)))  # before resampling: fewer channels
        audio = kernel.span(torch.from_numpy(audio), first, start, frames).numpy()
    return _padded(convert_channels(audio, channels), frames)


def read_pcm(path: str | Path, info: Info, start: int, frames: int) -> np.ndarray:
    """Samples start to start + frames of a file with 16-bit samples -> (C, frames) int16; 0 past the end."""
    stop = min(start + frames, info.frames)
    if stop <= start:
        return np.zeros((info.channels, frames), np.int16)
    return _padded(read(path, start, stop - start, pcm=True, info=info), frames)


def _padded(audio: np.ndarray, frames: int) -> np.ndarray:
    return np.pad(audio, ((0, 0), (0, frames - audio.shape[1]))) if audio.shape[1] < frames else audio


def frames_at(info: Info, sample_rate: int) -> int:
    """Length of a file at another rate, in whole samples."""
    return info.frames * sample_rate // info.sample_rate


def convert_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """(C, T) -> (channels, T): to mono by the mean, from mono by copies; ValueError for other conversions."""
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return (audio.T @ np.full(len(audio), 1 / len(audio), audio.dtype))[None]  # faster than a mean across rows
    if audio.shape[0] == 1:
        return np.repeat(audio, channels, axis=0)
    raise ValueError(f"{audio.shape[0]} channels cannot be converted to {channels}")


def create(path: Path, frames: int, sample_rate: int, channels: int, subtype: str = "FLOAT") -> soundfile.SoundFile:
    """Open a WAV file for `frames` samples, written in blocks (n, C); RF64 above 4 GiB."""
    large = frames * channels * 4 > 2**32 - 2**16
    return soundfile.SoundFile(file_name(path), "w", sample_rate, channels, subtype, format="RF64" if large else "WAV")
