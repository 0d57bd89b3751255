"""Statistics of a data set: hours and tracks of each split, loudness and activity of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from separate.config import CacheConfig, STFTConfig
from separate.data import open_splits
from separate.data.layouts.base import FolderLayout
from separate.data.layouts.opening import Opening
from separate.data.mixing.loudness import ACTIVE, LoudnessIndex, integrated, level
from separate.data.storage.reading import Region

MOST_GROUPS = 12  # beyond it, e.g. for hundreds of speakers, all are shown as one


@dataclass
class Group:
    """The signals of one source or the clips of one speaker.  levels: of each non-silent signal in LUFS."""

    hours: float
    signals: int
    levels: np.ndarray
    activity: float  # share of the time above the level ACTIVE


@dataclass
class Split:
    """One split.  hours: of the mixtures, or of clips to be mixed on the fly."""

    unit: str  # tracks or clips
    count: int
    hours: float
    groups: dict[str, Group]


def survey(layout: FolderLayout, splits: Sequence[str], cache: CacheConfig, stft: STFTConfig) -> dict[str, Split]:
    """Measure all signals, or take earlier measurements from the cache."""
    found = {}
    for split, examples in open_splits(layout, splits, cache, stft).items():
        regions, names = examples.regions(mixtures=False), examples.groups()
        index = LoudnessIndex(regions, examples.reader, Opening(cache=cache).arrays(), layout.workers)
        numbers: dict[str, list[int]] = {}  # regions of each group
        for number, name in enumerate(names):
            numbers.setdefault(name, []).append(number)
        if len(numbers) > MOST_GROUPS:
            numbers = {f"{len(numbers)} folders": list(range(len(names)))}
        groups = {name: _group(index, own, examples.sample_rate, regions) for name, own in numbers.items()}
        mixed = set(numbers) == set(layout.sources)
        hours = (max if mixed else sum)(group.hours for group in groups.values())
        unit, count = ("tracks", len(regions) // len(layout.sources)) if mixed else ("clips", len(regions))
        found[split] = Split(unit, count, hours, groups)
    return found


def _group(index: LoudnessIndex, numbers: Sequence[int], sample_rate: int, regions: Sequence[Region]) -> Group:
    energies = np.concatenate([index.of(number) for number in numbers])
    levels = np.array([integrated(index.of(number)) for number in numbers])
    samples = sum(regions[number].length for number in numbers)
    active = float(np.mean(level(energies) > ACTIVE)) if len(energies) else 0.0
    return Group(samples / sample_rate / 3600, len(numbers), levels[np.isfinite(levels)], active)


def summary(found: Mapping[str, Split]) -> dict[str, Any]:
    """The statistics as JSON values; levels in LUFS as 10th percentile, median and 90th percentile."""
    return {
        split: {
            one.unit: one.count,
            "hours": one.hours,
            "sources": {
                name: {
                    "hours": group.hours,
                    "signals": group.signals,
                    "silent": group.signals - len(group.levels),
                    "level": np.quantile(group.levels, (0.1, 0.5, 0.9)).tolist() if len(group.levels) else None,
                    "activity": group.activity,
                }
                for name, group in one.groups.items()
            },
        }
        for split, one in found.items()
    }


def table(found: Mapping[str, Split]) -> str:
    lines = [f"{'':22s}{'length':>10s}{'signals':>9s}{'silent':>8s}   level, LUFS (a tenth below, above)   active"]
    for split, one in found.items():
        lines.append(f"{split}: {one.count} {one.unit}, {_length(one.hours).strip()}")
        for name, group in one.groups.items():
            levels = ""
            if len(group.levels):
                low, median, high = np.quantile(group.levels, (0.1, 0.5, 0.9))
                levels = f"{median:8.1f} ({low:.1f} to {high:.1f})"
            silent = group.signals - len(group.levels)
            lines.append(
                f"  {name:20s}{_length(group.hours)}{group.signals:9d}{silent:8d}   {levels:34s}"
                f"{100 * group.activity:7.0f} %"
            )
    return "\n".join(lines)


def _length(hours: float) -> str:
    return f"{hours:8.1f} h" if hours >= 1 else f"{60 * hours:6.1f} min"
