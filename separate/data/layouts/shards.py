"""Tracks as KEY.SOURCE.wav in tar shards in the WebDataset format, in a folder or behind a URL."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import islice
from os.path import basename, splitext
from pathlib import Path
from threading import Thread

import numpy as np

from separate.audio import Info, Member, member_of
from separate.data.layouts.base import MixtureLayout
from separate.data.layouts.opening import Opening
from separate.data.layouts.track_files import FoundTracks, TrackFiles
from separate.data.mixing.excerpts import Excerpts
from separate.data.storage.download import ShardCopies, index_of, is_url
from separate.data.storage.parallel import in_parallel
from separate.data.storage.reading import Reader
from separate.data.storage.shard_index import Contents, audio_in, stored_contents
from separate.data.tracks import Strings, Tracks
from separate.errors import DataError, SeparateError, UsageError
from separate.validation import number

LOOKED_AT = 50  # files of a shard that are searched for sources


class ShardExcerpts(Excerpts):
    """Excerpts from a few shards at a time, so that only these need to be downloaded.

    A pass takes the shards in random order and shuffles the examples of about `layout.window` shards at a time.  The
    sources of one example come from one shard.  UsageError if the shards of a window do not fit on the disk.
    """

    def __init__(
        self, layout: Shards, split: str, tracks: Tracks, reader: Reader, shift: float = 0.0, grid: int = 1
    ) -> None:
        super().__init__(layout, split, tracks, reader, shift, grid)
        assert isinstance(reader.fetch, ShardCopies)
        self.copies = reader.fetch
        self.window = layout.window
        sizes: dict[str, int] = {}
        for path in self.tracks.files.paths:
            file, offset, size, _ = _member(path)
            sizes[file] = max(sizes.get(file, 0), offset + size)
        first_files = self.tracks.members[self.tracks.offsets[: -1 : len(self.sources) + 1]].tolist()  # of each track
        files = [_member(self.tracks.files.paths[number]).file for number in first_files]
        firsts = [track for track, file in enumerate(files) if track == 0 or file != files[track - 1]]
        self.files = Strings([files[track] for track in firsts])
        self.bounds = np.append(np.append(0, self.ends)[firsts], len(self))  # the first example of each shard
        self.remote = any(map(self.copies.is_copy, sizes))
        if self.remote:
            self.copies.check_space(sum(sorted(sizes.values())[-self.window - 2 :]), self.window)
        self._downloading: Thread | None = None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """A random order of shards; the examples of each are spread over the length of `window` shards."""
        starts = rng.permutation(len(self.files))
        times = np.repeat(starts, np.diff(self.bounds)) + self.window * rng.random(len(self))
        return np.argsort(times, kind="stable")

    def prefetch(self, order: np.ndarray, position: int) -> None:
        """Download the shards of the next examples, as many as in two shards, in the background."""
        if not self.remote or (self._downloading is not None and self._downloading.is_alive()):
            return
        soon = order[position : position + 2 * len(self) // len(self.files) + 1]
        numbers = dict.fromkeys((np.searchsorted(self.bounds, soon, side="right") - 1).tolist())
        missing = [file for file in (self.files[number] for number in numbers) if not self.copies.exists(file)]
        if missing:
            self._downloading = Thread(target=self._fetch, args=(missing,), daemon=True)
            self._downloading.start()

    def _fetch(self, files: Sequence[str]) -> None:
        with suppress(SeparateError):  # reading the shard raises it again
            for file in files:
                self.copies.fetch(file)

    def _another(self, index: int, rng: np.random.Generator) -> int:
        shard = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return int(rng.integers(self.bounds[shard], self.bounds[shard + 1]))


@dataclass
class Shards(MixtureLayout):
    """Tracks in the tar files ROOT/PATTERN.  `splits` holds the patterns, with * (in a folder) or {000..146}.

    The files of a track have the same KEY, the path up to the first dot of the file name.  `mixture: file` takes
    KEY.mixture.wav.  window: the number of shards from which examples are drawn at a time.
    """

    window: int = number(4, least=1, most=1_000_000, unit="shards")

    excerpts = ShardExcerpts

    def find(self, split: str, opening: Opening) -> FoundTracks:
        root = self.root if self.root == "/" else self.root.rstrip("/")
        pattern = self.split_name(split)
        places, index = _shards_of_split(root, pattern, split)
        list_one = partial(_list_shard, index=index, copies=self.fetcher(opening))
        workers = 0 if index else self.workers  # with an index listing is fast
        listed = in_parallel(list_one, places, workers, f"{split}: listing shards")
        wanted = [*self.sources, "mixture"] if self.mixture == "file" else self.sources
        found = FoundTracks([], f"KEY.{{{','.join(wanted)}}}.wav in {self.root}/{pattern}")
        for place, one in zip(places, listed, strict=True):
            if isinstance(one, str):
                found.problems.append(one)
                continue
            for key, files in _examples(place, *one, found).items():
                missing = [name for name in wanted if name not in files]
                if missing:
                    has = ", ".join(sorted(basename(path) for path in files.values()))
                    found.problems.append(f"{place}: {key} has no {missing[0]} (it has {has})")
                else:
                    found.tracks.append(self._track(place, key, files))
        return found

    def _track(self, place: str, key: str, files: dict[str, str]) -> TrackFiles:
        """files: the path of each source."""
        name, sources = f"{splitext(basename(place))[0]}/{key}", [[files[source]] for source in self.sources]
        track = TrackFiles(name, f"{place}: {key}", sources)
        if self.mixture == "file":
            track.mixture = files["mixture"]
        elif "mixture" in files:
            track.unused = [files["mixture"]]
        return track

    def fetcher(self, opening: Opening) -> ShardCopies:
        return ShardCopies(opening.folder, opening.limit)

    @classmethod
    def looks_like(cls, folder: Path) -> list[str] | None:
        for shard in sorted(folder.glob("*.tar"))[:1]:
            return _sources_in(shard)
        return None


def key_and_source(name: str) -> tuple[str, str]:
    """KEY and SOURCE of KEY.SOURCE.wav; the source of KEY.wav is empty."""
    folder, slash, last = name.rpartition("/")
    key, _, rest = last.partition(".")
    return f"{folder}{slash}{key}", rest.rpartition(".")[0]


def _list_shard(place: str, index: dict[str, Contents], copies: ShardCopies) -> tuple[str, Contents] | str:
    """The file of a shard and its contents, or the message of its fault."""
    try:
        if is_url(place):
            return copies.contents(place, index.get(place))
        return place, stored_contents(place, copies.root)
    except DataError as error:
        return str(error)


def _examples(place: str, file: str, contents: Contents, found: FoundTracks) -> dict[str, dict[str, str]]:
    """{key: {source: path}} of a shard; adds its headers and faults to `found`."""
    examples: dict[str, dict[str, str]] = {}
    for name, path, info in contents.files(file):
        if not isinstance(info, Info):
            found.problems.append(f"{place}: {name}: {info}")
            continue
        key, source = key_and_source(name)
        if examples.setdefault(key, {}).setdefault(source, path) != path:
            found.problems.append(f"{place}: {key} has {source} twice")
        found.infos[path] = info
    return examples


def _shards_of_split(root: str, pattern: str, split: str) -> tuple[list[str], dict[str, Contents]]:
    """The shards of a split in order, and the contents of those in an index."""
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(pattern))
    except ValueError:
        raise UsageError(f"data.splits.{split}={pattern} has a brace that is not closed") from None
    if not is_url(root):
        return _in_folder(Path(root).expanduser(), patterns, split), {}
    index = index_of(root)
    if not isinstance(index, str):
        names = list(dict.fromkeys(name for each in patterns for name in index if fnmatch(name, each)))
        if not names:
            raise DataError(
                f"{root}/index.jsonl has no shard {pattern} for the {split} split (it has "
                f"{', '.join(list(index)[:5])}); name them with data.splits.{split}=PATTERN"
            )
        return [f"{root}/{name}" for name in names], {f"{root}/{name}": index[name] for name in names}
    if any(sign in pattern for sign in "*?["):
        raise DataError(
            f"{index}, and without an index the shards of {pattern} are unknown; make it "
            f"with scripts/prepare_shards.py, or name all with \"data.splits.{split}='{split}-{{000000..000146}}.tar'\""
        )
    return list(dict.fromkeys(f"{root}/{name}" for name in patterns)), {}


def _in_folder(folder: Path, patterns: Sequence[str], split: str) -> list[str]:
    """The shards of a split in a folder; DataError if one is missing or is not a .tar file."""
    if not folder.is_dir():
        raise DataError(f"data.root={folder} is not a folder; set data.root to the folder, or the URL, of the shards")
    places = [str(path) for pattern in patterns for path in (sorted(folder.glob(pattern)) or [folder / pattern])]
    missing = [place for place in places if not Path(place).is_file()]
    if missing:
        present = ", ".join(sorted(path.name for path in folder.glob("*.tar"))[:5]) or "none"
        raise DataError(
            f"{missing[0]} is missing: the {split} split has no shard of that name (tar files there: {present}); "
            f"name them with data.splits.{split}=PATTERN"
        )
    others = [place for place in places if not place.endswith(".tar")]
    if others:
        raise DataError(
            f"{others[0]} is not a .tar file; name the shards of the {split} split with data.splits.{split}=PATTERN"
        )
    return list(dict.fromkeys(places))


def _sources_in(shard: Path) -> list[str]:
    """The sources of the first examples in a shard."""
    try:
        with tarfile.open(shard, "r:") as tar:
            names = [member.name for member in islice(audio_in(tar), LOOKED_AT)]
    except (tarfile.TarError, OSError):
        return []
    return sorted({key_and_source(name)[1] for name in names} - {"", "mixture"})


def _member(path: str) -> Member:
    member = member_of(path)
    assert member is not None
    return member
