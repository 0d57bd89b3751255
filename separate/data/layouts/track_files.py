"""The files of each track of a split, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from separate.audio import Info, shown
from separate.data.storage.headers import Headers
from separate.data.tracks import Piece, Signal, Track


@dataclass
class TrackFiles:
    """The files that a layout expects for one track; they may be missing.

    label: the track in messages.  sources: the files of each source, which are added up; no file is silence.
    mixture: the file of the mixture, None for the sum of the sources.  unused: files that are not read, but must have
    the same length.  start, duration: the part of the files in seconds.
    """

    name: str
    label: str
    sources: list[list[str]]
    mixture: str | None = None
    unused: list[str] = field(default_factory=list)
    start: float = 0.0
    duration: float | None = None

    @property
    def paths(self) -> list[str]:
        mixture = [] if self.mixture is None else [self.mixture]
        return [*(path for files in self.sources for path in files), *mixture, *self.unused]

    def checked(self, infos: Mapping[str, Info], ragged: bool) -> Track | str | None:
        """The track, the message of a fault, or None if a file has no header.  ragged: see `FoundTracks`."""
        found = {path: infos[path] for path in self.paths if path in infos}
        rates, lengths = {info.sample_rate for info in found.values()}, {info.frames for info in found.values()}
        if len(rates) > 1 or (len(lengths) > 1 and not ragged):
            listed = ", ".join(
                f"{'/'.join(shown(path).split('/')[-2:])} {info.frames} at {info.sample_rate} Hz"
                for path, info in found.items()
            )
            return f"lengths in samples differ: {listed}"
        if len(found) < len(set(self.paths)):
            return None
        track, rate = self._track(infos), rates.pop() if rates else 1
        if not any(lengths):
            return "holds no samples"
        if track.length(rate) <= 0:
            return f"starts at {self.start} s, after the end of its files"
        if self.duration is not None and track.length(rate) < round(self.duration * rate):
            return f"lasts {self.duration} s from {self.start} s, beyond the end of its files"
        return track

    def _track(self, infos: Mapping[str, Info]) -> Track:
        def signal(paths: Sequence[str]) -> Signal:
            return tuple(Piece(path, infos[path]) for path in paths)

        mixture = None if self.mixture is None else signal([self.mixture])
        return Track(self.name, tuple(map(signal, self.sources)), mixture, self.start, self.duration)


@dataclass
class FoundTracks:
    """The tracks that a layout found in one split.

    looked_for: the expected paths, for messages.  problems: `path: reason` for faults in listing the files.
    ragged: files may differ in length; shorter ones are padded with silence.  infos: headers that are already known.
    """

    tracks: list[TrackFiles]
    looked_for: str
    problems: list[str] = field(default_factory=list)
    ragged: bool = False
    infos: dict[str, Info] = field(default_factory=dict)

    def inspect(self, headers: Headers) -> SplitFiles:
        """Read all headers and check every track."""
        paths = [path for track in self.tracks for path in track.paths if path not in self.infos]
        read, unreadable = headers.read(paths)
        found = SplitFiles(self.looked_for, {**self.infos, **read}, self.tracks, [*self.problems, *unreadable])
        for track in self.tracks:
            checked = track.checked(found.infos, self.ragged)
            if isinstance(checked, str):
                found.problems.append(f"{track.label}: {checked}")
            elif checked is not None:
                found.tracks.append(checked)
        return found


@dataclass
class SplitFiles:
    """All files of one split and their faults.

    looked_for: the expected paths, for messages.  infos: the readable headers by path.  expected: the files of each
    track.  problems: `path: reason`.  tracks: those without a fault.
    """

    looked_for: str
    infos: dict[str, Info]
    expected: list[TrackFiles] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)

    @property
    def files(self) -> list[Piece]:
        """The files with at least one sample."""
        return [Piece(path, info) for path, info in self.infos.items() if info.frames]

    @property
    def readable(self) -> list[TrackFiles]:
        """The tracks whose files all have a readable header."""
        return [track for track in self.expected if all(path in self.infos for path in track.paths)]
