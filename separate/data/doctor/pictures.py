"""Pictures of the statistics of a data set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from separate.data.doctor.statistics import Split
from separate.errors import UsageError
from separate.files import printable, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(found: Mapping[str, Split], path: Path) -> None:
    """Draw the level of every signal and the activity of every source by split.  UsageError for an unknown format."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for statistics in found.values() for name in statistics.groups))
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
    activity.set(xlabel="active share of the time, %", xlim=(0, 100))
    for axes in (levels, activity):
        axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    kind, kinds = path.suffix.lstrip(".").lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise UsageError(f"picture={path}: no picture can be written as {kind}; choose from {', '.join(sorted(kinds))}")
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=120)
    replace_file(path, content.getvalue())
