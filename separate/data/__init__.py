"""Mixtures and their sources: from files or synthesised, as training examples and as whole recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from separate.data.example import Example, Examples, FileExamples
from separate.data.layouts.base import Listing, tracks_of
from separate.data.storage.cache import Cache
from separate.data.storage.headers import Headers
from separate.data.storage.quota import ARRAYS
from separate.errors import DataError, UsageError
from separate.files import cache_folder

if TYPE_CHECKING:
    from separate.config import (
        AugmentConfig,
        CacheConfig,
        DataConfig,
        FolderConfig,
        PoolsConfig,
        STFTConfig,
        TracksConfig,
    )
    from separate.data.layouts.musdb18 import Songs
    from separate.data.storage.download import Shards
    from separate.data.storage.reading import Reader
    from separate.stft import STFT

__all__ = ["Example", "Examples", "listing", "open_split"]


def open_split(
    config: DataConfig,
    split: str,
    seed: int = 0,
    cache: CacheConfig | None = None,
    stft: STFT | None = None,
    augment: AugmentConfig | None = None,
) -> Examples:
    """The examples of one split (train, valid or test).  DataError names every file that is not as it should be.

    seed: of what is synthesised (the toy songs).  cache: what is kept of the files, nothing by default.
    stft: the transform that training examples will be seen through; they begin at multiples of its hop, whatever the
    cache, so that all caches give the same examples.  augment: what will be changed in them; some of it is for the
    drawing to do.
    """
    from separate import config as schema

    cache, augment = cache or schema.CacheConfig(), augment or schema.AugmentConfig()
    grid = stft.hop if stft is not None and split == "train" else 1
    if isinstance(config, schema.TracksConfig):
        return _open_tracks(config, split, cache, stft, augment, grid)
    for name in ("loudness", "shift"):
        if getattr(augment, name):
            raise UsageError(
                f"data={config.layout} draws the levels and places of its sources itself, so that augment.{name} has "
                f"no effect; leave it out"
            )
    if isinstance(config, schema.PoolsConfig):
        return _open_pools(config, split, cache, stft, grid)
    assert isinstance(config, schema.ToyConfig)
    if cache.kind != "none":
        raise UsageError(f"data=toy is synthesised and has no files for cache={cache.kind}; use cache=none")
    from separate.data.layouts.toy import Toy

    return Toy(*_shape(config), songs=config.tracks.get(split, 0), split=split, seed=seed)


def _shape(config: DataConfig) -> tuple[list[str], int, int, float]:
    return config.sources, config.sample_rate, config.channels, config.excerpt


def _open_pools(config: PoolsConfig, split: str, cache: CacheConfig, stft: STFT | None, grid: int) -> Examples:
    from separate.data.layouts.pools import Pools, list_pools

    root = Path(config.root).expanduser()
    with _hint(config):
        pools = list_pools(
            root, config.splits, split, config.sources, config.interchangeable, headers_of(config, cache)
        )
    reader = make_reader(config, cache, stft)
    levels = (config.snr, config.pause, config.examples)
    examples = Pools(*_shape(config), pools, config.interchangeable, split, reader, *levels, grid)
    _check_room(examples)
    return examples


def _open_tracks(
    config: TracksConfig, split: str, cache: CacheConfig, stft: STFT | None, augment: AugmentConfig, grid: int
) -> Examples:
    from separate.config import ShardsConfig
    from separate.data.mixing.excerpts import Excerpts
    from separate.data.tracks import Tracks

    with _hint(config):
        tracks = Tracks(tracks_of(listing(config, split, cache), headers_of(config, cache)))
    if (config.coherent < 1 or augment.shift) and _holds_more(config):
        raise UsageError(
            "the mixtures of this data hold more than their sources, which is lost where these are drawn from several "
            "moments; use data.coherent=1 and augment.shift=0, or make sources of all that is in a mixture"
        )
    single = (tracks.ends[1:] - tracks.ends[:-1]).max(initial=0) <= 1  # sums of 16-bit samples may pass 16 bits
    pcm = single and tracks.files.are("PCM_16", config.sample_rate, config.channels)
    fetch = fetcher(config, cache)
    reader = make_reader(config, cache, stft, pcm, fetch)
    drawing = (config.coherent, config.min_activity, augment.shift, grid)
    if isinstance(config, ShardsConfig):
        from separate.data.layouts.shards import ShardExcerpts
        from separate.data.storage.download import Shards

        assert isinstance(fetch, Shards)
        examples: Excerpts = ShardExcerpts(
            *_shape(config), tracks, split, reader, *drawing, shards=fetch, window=config.window
        )
    else:
        examples = Excerpts(*_shape(config), tracks, split, reader, *drawing)
    if split == "train" and (config.min_activity > 0 or augment.loudness):
        from separate.data.mixing.loudness import LoudnessIndex

        regions = examples.regions(mixtures=False)
        examples.index = LoudnessIndex(regions, reader, arrays_of(cache), config.workers)
    _check_room(examples)
    return examples


def headers_of(config: FolderConfig, cache: CacheConfig) -> Headers:
    """Headers as they are remembered for a data set."""
    return Headers(cache_folder(cache.folder) / "headers", Path(config.root).expanduser())


@contextmanager
def _hint(config: FolderConfig) -> Iterator[None]:
    """Say beside what is wrong which layout the folder looks like, where it is another one."""
    try:
        yield
    except DataError as error:
        from separate.data.layouts.detection import looks_like

        hint = looks_like(Path(config.root).expanduser(), config)
        if hint is None:
            raise
        raise DataError(f"{error}; {hint}") from None


def open_splits(
    config: FolderConfig, splits: Sequence[str], cache: CacheConfig, stft: STFTConfig
) -> dict[str, FileExamples]:
    """The examples of several splits of a data set that lies in files."""
    from separate.stft import STFT

    transform = STFT(stft.n_fft, stft.hop, stft.window)
    found = {}
    for split in splits:
        examples = open_split(config, split, 0, cache, transform)
        assert isinstance(examples, FileExamples)
        found[split] = examples
    return found


def _holds_more(config: TracksConfig) -> bool:
    """Whether what a mixture holds besides its sources belongs to it."""
    from separate.config import MixtureConfig, TaskConfig
    from separate.data.layouts.base import NOISE

    if isinstance(config, TaskConfig):
        return config.task == "sep_noisy" and NOISE not in config.sources
    return isinstance(config, MixtureConfig) and config.mixture == "file"


def _check_room(examples: FileExamples) -> None:
    from separate.data.storage.prefetch import check_space
    from separate.data.storage.reading import CachedReader

    if isinstance(examples.reader, CachedReader):
        check_space(examples.reader, examples.regions())


def arrays_of(cache: CacheConfig) -> Cache:
    root, limit = _room(cache)
    return Cache(root / ARRAYS, limit)


def _room(cache: CacheConfig) -> tuple[Path, float | None]:
    """The folder that all is kept in, and the bytes that it may take."""
    return cache_folder(cache.folder), None if cache.limit is None else 1e9 * cache.limit


def fetcher(config: FolderConfig, cache: CacheConfig) -> Shards | Songs | None:
    """What is called with the path of a file before it is read, where files are not simply there."""
    if config.layout == "shards":
        from separate.data.storage.download import Shards

        return Shards(*_room(cache))
    if config.layout == "musdb18":
        from separate.data.layouts.musdb18 import Songs

        return Songs(*_room(cache))
    return None


def make_reader(
    config: DataConfig,
    cache: CacheConfig,
    stft: STFT | None,
    pcm: bool = False,
    fetch: Callable[[str], None] | None = None,
) -> Reader:
    """Reads from files or from the cache.  pcm: the files' samples are given out as the 16 bits that they are."""
    from separate.data.storage import reading

    files = reading.Reader(config.sample_rate, config.channels, pcm, fetch)
    if cache.kind == "none":
        return files
    if cache.kind == "audio" or stft is None:
        return reading.CachedReader(files, arrays_of(cache), cache.dtype, cache.content)
    if cache.dtype == "int16":
        raise UsageError("cache=spectrogram holds float32 or float16, not int16; use cache.dtype=float16")
    return reading.SpectrogramReader(files, arrays_of(cache), cache.dtype, cache.content, stft)


def listing(config: FolderConfig, split: str, cache: CacheConfig) -> Listing:
    """The files that a layout expects in one split.  cache: where those are kept that have to be decoded first."""
    from separate import config as schema
    from separate.data.layouts import base as layouts

    common = (Path(config.root).expanduser(), config.splits, split, config.sources)
    if isinstance(config, schema.TaskConfig):
        if config.layout == "librimix":
            return layouts.list_librimix(*common, config.task)
        return layouts.list_wsj0mix(*common, layouts.mixture_of_task(config.task, config.sources))
    if config.layout == "musdb18":
        from separate.data.layouts.musdb18 import Songs, list_musdb18

        assert isinstance(config, schema.MixtureConfig)
        return list_musdb18(*common, config.mixture, Songs(*_room(cache)), config.workers)
    if isinstance(config, schema.ShardsConfig):
        from separate.data.layouts.shards import list_shards
        from separate.data.storage.download import Shards

        return list_shards(config.root, *common[1:], config.mixture, Shards(*_room(cache)), config.workers)
    if isinstance(config, schema.MixtureConfig):
        lists = {"stems": layouts.list_stems, "slakh": layouts.list_slakh}
        return lists[config.layout](*common, config.mixture)
    if config.layout == "wsj0mix":
        return layouts.list_wsj0mix(*common, "mix")
    return layouts.list_manifest(*common)
