"""Filling the cache ahead of training, and seeing beforehand that there is room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from separate.data.storage.cache import sweep
from separate.data.storage.parallel import in_parallel
from separate.data.storage.reading import CachedReader, Region, SpectrogramReader
from separate.errors import UsageError


def fill(reader: CachedReader, regions: Sequence[Region], workers: int | str) -> None:
    """Make every entry that is missing.  An interrupted build leaves those that were ready."""
    sweep(reader.cache.folder)
    check_room(reader, regions)
    in_parallel(_Build(reader), regions, workers, "building the cache")


def needed(reader: CachedReader, regions: Sequence[Region]) -> int:
    """Bytes of all entries of these regions."""
    samples = sum(region.length for region in regions)
    size = samples * reader.channels * reader.dtype.itemsize
    if isinstance(reader, SpectrogramReader):
        frames = sum(1 + -(-region.length // reader.stft.hop) for region in regions)
        size += frames * reader.channels * reader.stft.bins * 2 * reader.dtype.itemsize
    return size


def check_room(reader: CachedReader, regions: Sequence[Region]) -> None:
    """UsageError where entries would drop each other, or the disk cannot hold them."""
    size, cache = needed(reader, regions), reader.cache
    smaller = "" if reader.dtype.itemsize == 2 else ", use cache.dtype=float16"
    if cache.limit is not None and size > cache.limit:
        raise UsageError(
            f"cache.limit={cache.limit / 1e9:g} GB, and this data takes {size / 1e9:.3g} GB, so that its entries would "
            f"drop each other; raise it{smaller}, or use cache=none"
        )
    there = sum(path.stat().st_size for path in cache.folder.glob("??/*.npy"))
    place = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if size - there > free:
        raise UsageError(
            f"the cache of this data takes {size / 1e9:.3g} GB and {place} has {free / 1e9:.3g} GB free; name another "
            f"cache.folder{smaller}, or use cache=none"
        )


class _Build:
    def __init__(self, reader: CachedReader) -> None:
        self.reader = reader

    def __call__(self, region: Region) -> None:
        if region.signal:
            self.reader.cached(region.signal)
        if isinstance(self.reader, SpectrogramReader):
            self.reader.spectrogram(region)
