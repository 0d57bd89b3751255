"""Data sets as training examples and whole recordings: `open_split` opens one split of a layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from separate.config import AugmentConfig, CacheConfig
from separate.data.example import Example, Examples, FileExamples
from separate.data.layouts.opening import Opening
from separate.data.storage.prefetch import check_space
from separate.data.storage.reading import CachedReader

if TYPE_CHECKING:
    from separate.config import STFTConfig
    from separate.data.layouts.base import FolderLayout, Layout
    from separate.stft import STFT

__all__ = ["Example", "Examples", "open_split", "open_splits"]


def open_split(
    layout: Layout,
    split: str,
    seed: int = 0,
    cache: CacheConfig | None = None,
    stft: STFT | None = None,
    augment: AugmentConfig | None = None,
) -> Examples:
    """The examples of one split: train, valid or test.  For the other arguments see `Opening`.

    DataError names every faulty file.  UsageError for augmentations that the layout does not support and for a cache
    that does not fit on the disk.
    """
    opening = Opening(seed, cache or CacheConfig(), stft, augment or AugmentConfig())
    layout.check(opening.augment)
    examples = layout.open(split, opening)
    if isinstance(examples, FileExamples) and isinstance(examples.reader, CachedReader):
        check_space(examples.reader, examples.regions())
    return examples


def open_splits(
    layout: FolderLayout, splits: Sequence[str], cache: CacheConfig, stft: STFTConfig
) -> dict[str, FileExamples]:
    """The examples of several splits of a data set in files."""
    from separate.stft import STFT

    transform = STFT(stft.n_fft, stft.hop, stft.window)
    return {split: cast(FileExamples, open_split(layout, split, 0, cache, transform)) for split in splits}
