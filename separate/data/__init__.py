"""Mixtures and their sources: from files or synthesised, as training examples and as whole recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from separate.data.examples import Example, Examples
from separate.data.headers import Headers
from separate.data.layouts import Listing, tracks_of
from separate.files import cache_folder

if TYPE_CHECKING:
    from separate.config import DataConfig, FolderConfig

__all__ = ["Example", "Examples", "listing", "open_split"]


def open_split(config: DataConfig, split: str, seed: int = 0) -> Examples:
    """The examples of one split (train, valid or test).  DataError names every file that is not as it should be.

    seed: of what is synthesised (the toy songs).
    """
    from separate import config as schema

    shape = (config.sources, config.sample_rate, config.channels, config.excerpt)
    if isinstance(config, schema.ToyConfig):
        from separate.data.toy import Toy

        return Toy(*shape, songs=config.tracks.get(split, 0), split=split, seed=seed)
    assert isinstance(config, schema.FolderConfig)
    root = Path(config.root).expanduser()
    headers = Headers(cache_folder(None) / "headers", root)
    if isinstance(config, schema.PoolsConfig):
        from separate.data.pools import Pools, list_pools

        pools = list_pools(root, config.splits, split, config.sources, config.interchangeable, headers)
        return Pools(*shape, pools, config.interchangeable, split, config.snr, tuple(config.pause), config.examples)  # type: ignore[arg-type]
    from separate.data.excerpts import Excerpts

    return Excerpts(*shape, tracks_of(listing(config, split), headers), split)


def listing(config: FolderConfig, split: str) -> Listing:
    """The files that a layout expects in one split."""
    from separate import config as schema
    from separate.data import layouts

    common = (Path(config.root).expanduser(), config.splits, split, config.sources)
    if isinstance(config, schema.TaskConfig):
        if config.layout == "librimix":
            return layouts.list_librimix(*common, config.task)
        return layouts.list_wsj0mix(*common, layouts.mixture_of_task(config.task, config.sources))
    if isinstance(config, schema.MixtureConfig):
        lists = {"stems": layouts.list_stems, "slakh": layouts.list_slakh}
        return lists[config.layout](*common, config.mixture)
    if config.layout == "wsj0mix":
        return layouts.list_wsj0mix(*common, "mix")
    return layouts.list_manifest(*common)
