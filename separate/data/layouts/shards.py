"""Examples in tar shards, as of WebDataset: the layout, and drawing from a few shards at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from os.path import basename, splitext
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from separate.audio import Info, Member, member_of
from separate.data.layouts.base import Listing, Sought, split_name
from separate.data.mixing.excerpts import Excerpts
from separate.data.storage.download import Contents, Shards, index_of, is_url
from separate.data.storage.parallel import in_parallel
from separate.data.tracks import Strings
from separate.errors import DataError, SeparateError, UsageError


def list_shards(
    root: str,
    splits: Mapping[str, str],
    split: str,
    sources: Sequence[str],
    mixture: str,
    shards: Shards,
    workers: int | str,
) -> Listing:
    """KEY.SOURCE.wav in the tar files ROOT/PATTERN, where `splits` gives the pattern: * in a folder, or {000..146}.

    A track is what has the same KEY, the path up to the first dot of its last part.  mixture: `sum` of the sources, or
    `file`, KEY.mixture.wav.
    """
    pattern = split_name(splits, split)
    places, told = _places(root if root == "/" else root.rstrip("/"), pattern, split)
    found = (
        [shards.contents(place, told[place]) for place in places]
        if told
        else in_parallel(partial(_contents, shards=shards), places, workers, f"{split}: listing shards")
    )
    wanted = [*sources, "mixture"] if mixture == "file" else sources
    listing = Listing([], f"KEY.{{{','.join(wanted)}}}.wav in {root}/{pattern}")
    for place, one in zip(places, found, strict=True):
        if isinstance(one, str):
            listing.problems.append(one)
            continue
        file, contents = one
        examples: dict[str, dict[str, str]] = {}
        for name, path, info in contents.files(file):
            if isinstance(info, Info):
                key, source = key_and_source(name)
                if examples.setdefault(key, {}).setdefault(source, path) != path:
                    listing.problems.append(f"{place}: {key} has {source} twice")
                listing.infos[path] = info
            else:
                listing.problems.append(f"{place}: {name}: {info}")
        for key, there in examples.items():
            missing = [name for name in wanted if name not in there]
            if missing:
                has = ", ".join(sorted(basename(path) for path in there.values()))
                listing.problems.append(f"{place}: {key} has no {missing[0]} (it has {has})")
                continue
            own = there["mixture"] if mixture == "file" else None
            beside = [there["mixture"]] if own is None and "mixture" in there else []  # not used, but must be as long
            name = f"{splitext(basename(place))[0]}/{key}"
            listing.sought.append(Sought(name, f"{place}: {key}", [[there[source]] for source in sources], own, beside))
    return listing


def _contents(place: str, shards: Shards) -> tuple[str, Contents] | str:
    try:
        return shards.contents(place)
    except DataError as error:
        return str(error)


def key_and_source(name: str) -> tuple[str, str]:
    """KEY.SOURCE.wav; of KEY.wav the source is empty."""
    folder, slash, last = name.rpartition("/")
    key, _, rest = last.partition(".")
    return f"{folder}{slash}{key}", rest.rpartition(".")[0]


def _places(root: str, pattern: str, split: str) -> tuple[list[str], dict[str, Contents]]:
    """The shards of a split in order, and what an index says of them."""
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(pattern))
    except ValueError:
        raise UsageError(f"data.splits.{split}={pattern} has a brace that is not closed") from None
    if not is_url(root):
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.root={root} is no folder; set data.root to the folder, or the URL, of the shards")
        places = [str(path) for one in patterns for path in (sorted(folder.glob(one)) or [folder / one])]
        missing = [place for place in places if not Path(place).is_file()]
        if missing:
            there = ", ".join(sorted(path.name for path in folder.glob("*.tar"))[:5]) or "none"
            raise DataError(
                f"{missing[0]} is missing: the {split} split has no shard of that name (the folder's tar files: "
                f"{there}); name them with data.splits.{split}=PATTERN"
            )
        others = [place for place in places if not place.endswith(".tar")]
        if others:
            raise DataError(f"{others[0]} is no .tar file; name the shards of the {split} split with "
                            f"data.splits.{split}=PATTERN")  # fmt: skip
        return list(dict.fromkeys(places)), {}
    index = index_of(root)
    if not isinstance(index, str):
        names = list(dict.fromkeys(name for one in patterns for name in index if fnmatch(name, one)))
        if not names:
            raise DataError(
                f"{root}/index.jsonl has no shard {pattern} for the {split} split (it has "
                f"{', '.join(list(index)[:5])}); name them with data.splits.{split}=PATTERN"
            )
        return [f"{root}/{name}" for name in names], {f"{root}/{name}": index[name] for name in names}
    if any(sign in pattern for sign in "*?["):
        raise DataError(
            f"{index}, and only it would say which shards {pattern} are; make it with scripts/prepare_shards.py, or "
            f"name all with \"data.splits.{split}='{split}-{{000000..000146}}.tar'\""
        )
    return list(dict.fromkeys(f"{root}/{one}" for one in patterns)), {}


class ShardExcerpts(Excerpts):
    """Excerpts of tracks in shards: few shards are drawn from at a time, so that only these need be there.

    A pass takes the shards in random order and mixes the examples of about `window` of them; sources of several tracks
    come from one shard.  shards: where copies are fetched to.  UsageError where there is no room for so many.
    """

    def __init__(self, *arguments: Any, shards: Shards, window: int) -> None:
        super().__init__(*arguments)
        self.shards = shards
        self.window = window
        sizes: dict[str, int] = {}
        for path in self.tracks.files.paths:
            file, offset, size, _ = _member(path)
            sizes[file] = max(sizes.get(file, 0), offset + size)
        heads = self.tracks.members[self.tracks.ends[: -1 : len(self.sources) + 1]].tolist()  # first file of each track
        files = [_member(self.tracks.files.paths[head]).file for head in heads]
        firsts = [track for track, file in enumerate(files) if track == 0 or file != files[track - 1]]
        self.files = Strings([files[track] for track in firsts])
        self.bounds = np.append(np.append(0, self.ends)[firsts], len(self))  # example numbers that shards begin with
        self.fetched = any(map(shards.fetches, sizes))
        if self.fetched:
            shards.check_room(sum(sorted(sizes.values())[-window - 2 :]), window)
        self._ahead: Thread | None = None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Shards begin one after the other; each is spread over the time that `window` of them take."""
        begins = rng.permutation(len(self.files))
        moments = np.repeat(begins, np.diff(self.bounds)) + self.window * rng.random(len(self))
        return np.argsort(moments, kind="stable")

    def prefetch(self, order: np.ndarray, position: int) -> None:
        """Fetch the shards of the next examples, about two shards' worth, in the background."""
        if not self.fetched or (self._ahead is not None and self._ahead.is_alive()):
            return
        soon = order[position : position + 2 * len(self) // len(self.files) + 1]
        numbers = dict.fromkeys((np.searchsorted(self.bounds, soon, side="right") - 1).tolist())
        missing = [file for file in (self.files[number] for number in numbers) if not self.shards.is_there(file)]
        if missing:
            self._ahead = Thread(target=self._fetch, args=(missing,), daemon=True)
            self._ahead.start()

    def _fetch(self, files: Sequence[str]) -> None:
        with suppress(SeparateError):  # whoever reads it will meet it
            for file in files:
                self.shards.fetch(file)

    def _another(self, index: int, rng: np.random.Generator) -> int:
        shard = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return int(rng.integers(self.bounds[shard], self.bounds[shard + 1]))


def _member(path: str) -> Member:
    member = member_of(path)
    assert member is not None
    return member
