"""Prefetch the cache before training and check that it fits on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from separate.data.storage.cache import sweep
from separate.data.storage.parallel import in_parallel
from separate.data.storage.reading import CachedReader, Region, SpectrogramReader
from separate.errors import UsageError


def fill(reader: CachedReader, regions: Sequence[Region], workers: int | str) -> None:
    """Compute all missing entries.  An interruption keeps the complete ones."""

    def add_entries(region: Region) -> None:
        if region.signal:
            reader.cached(region.signal)
        if isinstance(reader, SpectrogramReader):
            reader.spectrogram(region)

    sweep(reader.cache.folder)
    check_space(reader, regions)
    in_parallel(add_entries, regions, workers, "building the cache")


def needed(reader: CachedReader, regions: Sequence[Region]) -> int:
    """The size of all entries of these regions in bytes."""
    samples = sum(region.length for region in regions)
    size = samples * reader.channels * reader.dtype.itemsize
    if isinstance(reader, SpectrogramReader):
        frames = sum(1 + -(-region.length // reader.stft.hop) for region in regions)
        size += frames * reader.channels * reader.stft.bins * 2 * reader.dtype.itemsize
    return size


def check_space(reader: CachedReader, regions: Sequence[Region]) -> None:
    """UsageError if the entries exceed the limit of the cache or the free space of its disk."""
    size, cache = needed(reader, regions), reader.cache
    smaller = "" if reader.dtype.itemsize == 2 else ", use cache.dtype=float16"
    if cache.limit is not None and size > cache.limit:
        raise UsageError(
            f"cache.limit={cache.limit / 1e9:g} GB, and this data takes {size / 1e9:.3g} GB, so that its entries would "
            f"evict each other; raise cache.limit{smaller}, or use cache=none"
        )
    present = sum(path.stat().st_size for path in cache.folder.glob("??/*.npy"))
    existing = next(folder for folder in (cache.folder, *cache.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size - present > free:
        raise UsageError(
            f"the cache of this data takes {size / 1e9:.3g} GB and {existing} has {free / 1e9:.3g} GB free; name "
            f"another cache.folder{smaller}, or use cache=none"
        )
