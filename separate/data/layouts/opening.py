"""The arguments for opening a split: seed, cache, STFT and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from separate.config import AugmentConfig, CacheConfig
from separate.data.storage.cache import Cache
from separate.data.storage.headers import Headers
from separate.data.storage.quota import ARRAYS
from separate.data.storage.reading import CachedReader, Reader, SpectrogramReader
from separate.errors import UsageError
from separate.files import cache_folder

if TYPE_CHECKING:
    from separate.data.layouts.base import Layout
    from separate.stft import STFT

Fetch = Callable[[str], None]  # called with the path of a file before it is read


@dataclass(frozen=True)
class Opening:
    """The arguments for opening a split of a layout.

    seed: of synthesised audio.  cache: see conf/cache.  stft: the transform of the separator; training examples begin
    at multiples of its hop with every cache, so that all caches give the same examples.  augment: the augmentation of
    training examples, whose `shift` and `loudness` are used in drawing excerpts.
    """

    seed: int = 0
    cache: CacheConfig = field(default_factory=CacheConfig)
    stft: STFT | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def grid(self, split: str) -> int:
        """The number of samples at whose multiples the examples of a split begin."""
        return self.stft.hop if self.stft is not None and split == "train" else 1

    @property
    def folder(self) -> Path:
        """The cache folder, which also holds headers, decoded songs and downloaded shards."""
        return cache_folder(self.cache.folder)

    @property
    def limit(self) -> float | None:
        """The largest size of the cache folder in bytes, None without a limit."""
        return None if self.cache.limit is None else 1e9 * self.cache.limit

    def arrays(self) -> Cache:
        return Cache(self.folder / ARRAYS, self.limit)

    def headers(self, root: Path) -> Headers:
        """The headers of the data set at `root`, stored in the cache folder."""
        return Headers(self.folder / "headers", root)

    def reader(self, layout: Layout, pcm: bool = False, fetch: Fetch | None = None) -> Reader:
        """A reader of files, of cached samples or of cached spectrograms.

        pcm, fetch: see `Reader`.
        """
        files, cache = Reader(layout.sample_rate, layout.channels, pcm, fetch), self.cache
        if cache.kind == "none":
            return files
        if cache.kind == "audio" or self.stft is None:
            return CachedReader(files, self.arrays(), cache.dtype, cache.content)
        if cache.dtype == "int16":
            raise UsageError("cache=spectrogram holds float32 or float16, not int16; use cache.dtype=float16")
        return SpectrogramReader(files, self.arrays(), cache.dtype, cache.content, self.stft)
