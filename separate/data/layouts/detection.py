"""Which layout a folder looks like, for whoever named another."""

from __future__ import annotations

import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from separate.audio import ENDINGS
from separate.data.layouts.shards import key_and_source
from separate.data.storage.download import audio_in
from separate.data.storage.headers import folders_in

if TYPE_CHECKING:
    from separate.config import FolderConfig


MOST_STEMS = 16  # that a folder of stems is thought to hold


def looks_like(root: Path, config: FolderConfig) -> str | None:
    """`it looks like data=…`, or None where the folder says nothing, or what is configured already."""
    for place in (root, root.parent, *([root / name for name in folders_in(root)[:20]] if root.is_dir() else [])):
        if place.is_dir() and (found := _layout(place)):
            layout, sources = found
            same = layout == config.layout and place == root and (not sources or set(sources) >= set(config.sources))
            if same:
                return None
            named = f" 'data.sources=[{','.join(sources)}]'" if sources and layout in ("stems", "shards") else ""
            return f"{place} looks like data={layout} data.root={place}{named}"
    return None


def _layout(root: Path) -> tuple[str, list[str]] | None:
    for shard in sorted(root.glob("*.tar"))[:1]:
        return "shards", _names_in(shard)
    if any(root.glob("*.jsonl")):
        return "manifest", []
    if any(root.glob("metadata/mixture_*.csv")):
        return "librimix", []
    for split in (root / name for name in folders_in(root)):
        inside = folders_in(split)
        if {"mix_clean", "mix_both"} & set(inside) and "s1" in inside:
            return "wham", [name for name in inside if name.startswith("s")]
        if {"mix", "s1", "s2"} <= set(inside):
            return "wsj0mix", [name for name in inside if name != "mix"]
        if not inside:
            continue
        first = split / inside[0]
        if (first / "metadata.yaml").is_file() and (first / "stems").is_dir():
            return "slakh", []
        names = Counter(
            path.stem for name in inside[:20] for path in (split / name).iterdir() if path.suffix.lower() in ENDINGS
        )
        looked_at = len(inside[:20])
        stems = sorted(name for name, count in names.items() if count >= 0.8 * looked_at and name != "mixture")
        if 2 <= len(stems) <= MOST_STEMS and all(
            any(c.isalpha() for c in name) for name in stems
        ):  # not takes by number
            return "stems", stems
        if names and looked_at >= 2:
            return "pools", []
    return None


def _names_in(shard: Path) -> list[str]:
    """The sources in the first examples of a shard."""
    try:
        with tarfile.open(shard, "r:") as tar:
            there = [member.name for member in islice(audio_in(tar), 50)]
    except (tarfile.TarError, OSError):
        return []
    return sorted({key_and_source(name)[1] for name in there} - {"", "mixture"})
