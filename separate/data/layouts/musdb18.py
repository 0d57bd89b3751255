"""MUSDB18 in compressed songs of five streams, decoded with ffmpeg: ROOT/SPLIT/NAME.stem.mp4 (Rafii et al., 2017)."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from separate.data.layouts.base import MixtureLayout
from separate.data.layouts.held_out import tracks_of_split
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.data.storage.headers import folders_in
from separate.data.storage.parallel import in_parallel
from separate.data.storage.quota import DECODED, LastUse, evict
from separate.errors import DataError, UsageError
from separate.files import replace_file

STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # in the order of the files
ENDING = ".stem.mp4"
SONG = ".song"  # suffix of the file with the path of a song, next to the folder of its decoded streams


@dataclass
class Musdb18(MixtureLayout):
    """Songs with one stream for each stem.  `mixture: file` takes the stream of the mixture.

    MUSDB18's validation tracks are held out of train.
    """

    def find(self, split: str, opening: Opening) -> FoundTracks:
        unknown = [source for source in self.sources if source not in STREAMS[1:]]
        if unknown:
            raise UsageError(f"data=musdb18 has no source {unknown[0]}; data.sources can name {', '.join(STREAMS[1:])}")
        folder, names = tracks_of_split(self, split, _songs)
        songs = [folder / f"{name}{ENDING}" for name in names]
        decoded = in_parallel(self.fetcher(opening).decode, songs, self.workers, "decoding")
        if not all(streams.is_dir() for streams in decoded):
            raise UsageError(
                f"the decoded songs of {split} take more than cache.limit={(opening.limit or 0) / 1e9:g} GB, so that "
                f"they would evict each other; raise cache.limit"
            )
        tracks = [self._track(song, streams) for song, streams in zip(songs, decoded, strict=True)]
        return FoundTracks(tracks, f"{folder}/NAME{ENDING}")

    def _track(self, song: Path, streams: Path) -> TrackFiles:
        """streams: the folder of the decoded streams."""
        mixture = f"{streams}/mixture.wav" if self.mixture == "file" else None
        sources = [[f"{streams}/{source}.wav"] for source in self.sources]
        return TrackFiles(song.name.removesuffix(ENDING), str(song), sources, mixture)

    def fetcher(self, opening: Opening) -> DecodedSongs:
        return DecodedSongs(opening.folder, opening.limit)

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        return [] if any(_songs(folder / split) for split in folders_in(folder)) else None


class DecodedSongs:
    """Decoded songs in ROOT/decoded, as 32-bit WAV.  Call with the path of a file to decode its song if it was evicted.

    root: the cache folder.  limit: its largest size in bytes.
    """

    def __init__(self, root: Path, limit: float | None) -> None:
        self.root = root
        self.folder = root / DECODED
        self.limit = limit
        self.exists = LastUse()

    def __call__(self, path: str) -> None:
        streams = Path(path).parent
        if streams.parent == self.folder and not self.exists(str(streams)):
            try:
                self.decode(Path(os.fsdecode(streams.with_suffix(SONG).read_bytes())))
            except OSError as error:
                raise DataError(
                    f"{path} was evicted from the cache and its song cannot be read again ({error}); start again"
                ) from None

    def decode(self, song: Path) -> Path:
        """The folder of a song's streams, STREAM.wav each.  The song is decoded if the folder is missing."""
        status = song.stat()
        made_from = [str(song.absolute()), status.st_size, status.st_mtime_ns]
        streams = self.folder / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        if not self.exists(str(streams)):
            _decode(song, streams)
            replace_file(streams.with_suffix(SONG), os.fsencode(song.absolute()))
            evict(self.root, self.limit)
        return streams


def _songs(folder: Path) -> list[str]:
    return sorted(p.name.removesuffix(ENDING) for p in folder.glob(f"*{ENDING}") if not p.name.startswith("."))


def _decode(song: Path, streams: Path) -> None:
    """Write the streams of a song to the folder `streams`."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise UsageError(
            "data=musdb18 is decoded with ffmpeg, which is not installed: apt-get install ffmpeg, brew install ffmpeg "
            "or conda install ffmpeg; or take MUSDB18-HQ with data=stems"
        )
    part = streams.parent / f"{streams.name}.{secrets.token_hex(4)}.part"
    part.mkdir(parents=True)
    try:
        command = [program, "-nostdin", "-v", "error", "-i", str(song)]
        for number, stream in enumerate(STREAMS):
            command += ["-map", f"0:a:{number}", "-c:a", "pcm_f32le", f"{part}/{stream}.wav"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"{song}: ffmpeg could not decode its five streams ({reason}); copy it again")
        with suppress(OSError):  # another process was faster
            part.rename(streams)
    finally:
        shutil.rmtree(part, ignore_errors=True)
