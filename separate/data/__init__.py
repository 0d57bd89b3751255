"""Mixtures and their sources: from files or synthesised, as training examples and as whole recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from separate.data.cache import Cache
from separate.data.examples import Example, Examples, FileExamples
from separate.data.headers import Headers
from separate.data.layouts import Listing, tracks_of
from separate.errors import UsageError
from separate.files import cache_folder

if TYPE_CHECKING:
    from separate.config import AugmentConfig, CacheConfig, DataConfig, FolderConfig, STFTConfig, TracksConfig
    from separate.data.reading import Reader
    from separate.data.tracks import Piece
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

    cache = cache or schema.CacheConfig()
    shape = (config.sources, config.sample_rate, config.channels, config.excerpt)
    grid = stft.hop if stft is not None and split == "train" else 1
    if isinstance(config, schema.ToyConfig):
        from separate.data.toy import Toy

        if cache.kind != "none":
            raise UsageError(f"data=toy is synthesised and has no files for cache={cache.kind}; use cache=none")
        _refuse_where_drawn(augment, config.layout)
        return Toy(*shape, songs=config.tracks.get(split, 0), split=split, seed=seed)
    assert isinstance(config, schema.FolderConfig)
    root = Path(config.root).expanduser()
    headers = Headers(cache_folder(cache.folder) / "headers", root)
    if isinstance(config, schema.PoolsConfig):
        from separate.data.pools import Pools, list_pools

        _refuse_where_drawn(augment, config.layout)
        pools = list_pools(root, config.splits, split, config.sources, config.interchangeable, headers)
        reader = make_reader(config, cache, stft, [])
        pause, inter = config.pause, config.interchangeable
        mixed = Pools(*shape, pools, inter, split, reader, config.snr, pause, config.examples, grid)
        _check_room(mixed)
        return mixed
    assert isinstance(config, schema.TracksConfig)
    from separate.data.excerpts import Excerpts
    from separate.data.tracks import Tracks

    tracks = Tracks(tracks_of(listing(config, split, cache), headers))
    single = (tracks.ends[1:] - tracks.ends[:-1]).max(initial=0) <= 1  # sums of 16-bit samples may not be
    reader = make_reader(config, cache, stft, tracks.files if single else [])
    shift = augment.shift if augment else 0.0
    if (config.coherent < 1 or shift) and _holds_more(config):
        raise UsageError(
            "the mixtures of this data hold more than their sources, which is lost where these are drawn from several "
            "moments; use data.coherent=1 and augment.shift=0, or make sources of all that is in a mixture"
        )
    examples = Excerpts(*shape, tracks, split, reader, config.coherent, config.min_activity, shift, grid)
    if split == "train" and (config.min_activity > 0 or (augment and augment.loudness)):
        from separate.data.loudness import LoudnessIndex

        arrays = arrays_of(cache)
        examples.index = LoudnessIndex(examples.regions(mixtures=False), reader, arrays, config.workers)
    _check_room(examples)
    return examples


def _check_room(examples: FileExamples) -> None:
    from separate.data.ahead import check_room
    from separate.data.reading import CachedReader

    if isinstance(examples.reader, CachedReader):
        check_room(examples.reader, examples.regions())


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
    from separate.data.layouts import NOISE

    if isinstance(config, TaskConfig):
        return config.task == "sep_noisy" and NOISE not in config.sources
    return isinstance(config, MixtureConfig) and config.mixture == "file"


def _refuse_where_drawn(augment: AugmentConfig | None, layout: str) -> None:
    """The layouts that mix on the fly draw levels and places themselves."""
    for name in ("loudness", "shift"):
        if augment and getattr(augment, name):
            raise UsageError(
                f"data={layout} draws the levels and places of its sources itself, so that augment.{name} has no "
                f"effect; leave it out"
            )


def arrays_of(cache: CacheConfig) -> Cache:
    return Cache(cache_folder(cache.folder) / "arrays", None if cache.limit is None else 1e9 * cache.limit)


def make_reader(config: DataConfig, cache: CacheConfig, stft: STFT | None, files: Iterable[Piece]) -> Reader:
    """Reads from files or from the cache.  files: those that may be given out in the 16-bit samples that they hold."""
    from separate.data import reading

    files = list(files)
    pcm = bool(files) and reading.is_pcm(files, config.sample_rate, config.channels)
    if cache.kind == "none":
        return reading.Reader(config.sample_rate, config.channels, pcm)
    common = (config.sample_rate, config.channels, arrays_of(cache), cache.dtype)
    if cache.kind == "audio" or stft is None:
        return reading.CachedReader(*common, pcm, cache.content)
    if cache.dtype == "int16":
        raise UsageError("cache=spectrogram holds float32 or float16, not int16; use cache.dtype=float16")
    return reading.SpectrogramReader(*common, stft, pcm, cache.content)


def listing(config: FolderConfig, split: str, cache: CacheConfig) -> Listing:
    """The files that a layout expects in one split.  cache: where those are kept that have to be decoded first."""
    from separate import config as schema
    from separate.data import layouts

    common = (Path(config.root).expanduser(), config.splits, split, config.sources)
    if isinstance(config, schema.TaskConfig):
        if config.layout == "librimix":
            return layouts.list_librimix(*common, config.task)
        return layouts.list_wsj0mix(*common, layouts.mixture_of_task(config.task, config.sources))
    if config.layout == "musdb18":
        from separate.data.musdb18 import list_musdb18

        assert isinstance(config, schema.MixtureConfig)
        return list_musdb18(*common, config.mixture, cache_folder(cache.folder) / "decoded", config.workers)
    if isinstance(config, schema.MixtureConfig):
        lists = {"stems": layouts.list_stems, "slakh": layouts.list_slakh}
        return lists[config.layout](*common, config.mixture)
    if config.layout == "wsj0mix":
        return layouts.list_wsj0mix(*common, "mix")
    return layouts.list_manifest(*common)
