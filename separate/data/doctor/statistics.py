"""What a data set is like: hours and tracks of each split, how loud its sources are and how often they sound."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from separate.config import CacheConfig, FolderConfig, STFTConfig
from separate.data import arrays_of, open_splits
from separate.data.mixing.loudness import ACTIVE, LoudnessIndex, integrated, level
from separate.errors import UsageError
from separate.files import printable, replace_file

MOST = 12  # groups that are shown by name; speakers may be hundreds


@dataclass
class Group:
    """The signals of one source, or the clips of one speaker.  levels: LUFS of each that is not silent."""

    hours: float
    signals: int
    levels: np.ndarray
    activity: float  # share of the time that it is louder than ACTIVE


@dataclass
class Split:
    """hours: of mixtures, or of clips that are mixed on the fly."""

    unit: str  # tracks or clips
    count: int
    hours: float
    groups: dict[str, Group]


def survey(config: FolderConfig, splits: Sequence[str], cache: CacheConfig, stft: STFTConfig) -> dict[str, Split]:
    """Read everything, or what was measured of it before."""
    found = {}
    for split, examples in open_splits(config, splits, cache, stft).items():
        regions, names = examples.regions(mixtures=False), examples.groups()
        index = LoudnessIndex(regions, examples.reader, arrays_of(cache), config.workers)
        of: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            of.setdefault(name, []).append(number)
        if len(of) > MOST:
            of = {f"{len(of)} folders": list(range(len(names)))}
        groups = {name: _group(index, numbers, examples.sample_rate, regions) for name, numbers in of.items()}
        mixed = set(of) == set(config.sources)
        hours = (max if mixed else sum)(group.hours for group in groups.values())
        unit, count = ("tracks", len(regions) // len(config.sources)) if mixed else ("clips", len(regions))
        found[split] = Split(unit, count, hours, groups)
    return found


def _group(index: LoudnessIndex, numbers: Sequence[int], sample_rate: int, regions: Sequence[Any]) -> Group:
    energies = np.concatenate([index.of(number) for number in numbers])
    levels = np.array([integrated(index.of(number)) for number in numbers])
    samples = sum(regions[number].length for number in numbers)
    active = float(np.mean(level(energies) > ACTIVE)) if len(energies) else 0.0
    return Group(samples / sample_rate / 3600, len(numbers), levels[np.isfinite(levels)], active)


def summary(found: Mapping[str, Split]) -> dict[str, Any]:
    """Plain values for JSON; levels as the least tenth, the median and the largest tenth, in LUFS."""
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


def picture(found: Mapping[str, Split], path: Path) -> None:
    """Levels of all signals, and how often each source sounds, side by side for each split."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for one in found.values() for name in one.groups))
    figure = Figure(figsize=(10, 1.6 + 0.35 * len(names) * len(found)), layout="constrained")
    levels, activity = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    labels: list[str] = []
    for number, (split, one) in enumerate(found.items()):
        for name, group in one.groups.items():
            row = len(labels)
            colour = f"C{number}"
            spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(group.levels))
            levels.plot(group.levels, row + spread, ".", color=colour, alpha=0.4, markersize=4)
            if len(group.levels):
                levels.plot([np.median(group.levels)] * 2, [row - 0.4, row + 0.4], color="black")
            activity.barh(row, 100 * group.activity, color=colour, height=0.7)
            labels.append(f"{split}: {name}")
    levels.set_yticks(range(len(labels)), list(map(printable, labels)), parse_math=False)
    levels.set(xlabel="loudness of each signal, LUFS; line: median")
    levels.invert_yaxis()
    activity.set(xlabel="share of the time that it sounds, %", xlim=(0, 100))
    for axes in (levels, activity):
        axes.grid(axis="x", alpha=0.3)
    kind, kinds = path.suffix.lstrip(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise UsageError(f"picture={path}: no picture can be written as {kind}; choose from {', '.join(sorted(kinds))}")
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=120)
    replace_file(path, content.getvalue())
