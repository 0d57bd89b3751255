"""Mixtures and their sources: from files or synthesised, as training examples and as whole recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from separate.data.examples import Example, Examples

if TYPE_CHECKING:
    from separate.config import DataConfig

__all__ = ["Example", "Examples", "open_split"]


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
    if isinstance(config, schema.PoolsConfig):
        from separate.data.pools import Pools, list_pools

        pools = list_pools(root, config.splits, split, least=len(config.sources))
        return Pools(*shape, pools, split, config.snr, tuple(config.pause), config.examples)  # type: ignore[arg-type]
    from separate.data import tracks
    from separate.data.excerpts import Excerpts

    layout = {"stems": tracks.list_stems, "wsj0mix": tracks.list_wsj0mix}[config.layout]
    return Excerpts(*shape, layout(root, config.splits, split, config.sources), split)
