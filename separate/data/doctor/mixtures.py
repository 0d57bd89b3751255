"""Whether the mixture of a track is the sum of its sources and, if not, the likely mistake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from separate.audio import Info, UnreadableError, probe, read, shown
from separate.data.layouts.opening import Fetch
from separate.data.layouts.track_files import TrackFiles

PARTS, SECONDS = 5, 1.0  # the number of parts of a file that are read, and their length
LARGEST_REST = -30.0  # dB, of the difference between mixture and sum


class CompareMixture:
    """Compare the mixture's file of a track with the sum of the sources.

    A call gives the path and the reason if they differ, None if they agree or there is nothing to compare.
    names: of the sources.  fetch: see `Reader`.
    """

    def __init__(self, names: Sequence[str], fetch: Fetch | None) -> None:
        self.names = names
        self.fetch = fetch

    def __call__(self, one: TrackFiles) -> str | None:
        path = one.mixture or next(iter(one.beside), None)
        if path is None or any(len(files) != 1 for files in one.sources):
            return None
        try:
            if self.fetch is not None:
                self.fetch(path)
            return self._compare(path, [files[0] for files in one.sources])
        except (UnreadableError, ValueError):
            return None  # reported by the other checks

    def _compare(self, path: str, sources: list[str]) -> str | None:
        spans = read_spans(probe(path))
        mixture, *parts = (np.concatenate([read(p, *span) for span in spans], axis=1) for p in (path, *sources))
        if any(part.shape != mixture.shape for part in parts):
            return None
        stacked = np.stack(parts)
        rest = _decibels(mixture - stacked.sum(0), mixture)
        if rest <= LARGEST_REST:
            return None
        return f"{shown(path)}: {self._reason(mixture, stacked)}the rest is {rest:+.0f} dB of it"

    def _reason(self, mixture: np.ndarray, sources: np.ndarray) -> str:
        """The mistake that explains the difference, or an empty string."""
        total = sources.sum(0)
        for name, source in zip(self.names, sources, strict=True):
            if _decibels(mixture - total + 2 * source, mixture) <= LARGEST_REST:
                return f"{name} is inverted; "
            if _decibels(mixture - total + source, mixture) <= LARGEST_REST:
                return f"{name} is not in it; "
            if len(source) == 2 and _decibels(mixture - total + source - source[::-1], mixture) <= LARGEST_REST:
                return f"left and right of {name} are swapped; "
        if len(mixture) == 2:
            for side, channel in (("left", 0), ("right", 1)):
                if _decibels(mixture[channel] - total[channel], mixture[channel]) <= LARGEST_REST:
                    return f"only its {side} channel is the sum; "
        gain = float((mixture * total).sum() / max(float((total**2).sum()), 1e-12))
        if _decibels(mixture - gain * total, mixture) <= LARGEST_REST:
            return f"it is the sum at {20 * np.log10(abs(gain) + 1e-12):+.1f} dB{', inverted' if gain < 0 else ''}; "
        return ""


def _decibels(rest: np.ndarray, whole: np.ndarray) -> float:
    """The energy of `rest` relative to that of `whole`."""
    return float(10 * np.log10(((rest**2).sum() + 1e-12) / ((whole**2).sum() + 1e-12)))


def read_spans(info: Info) -> list[tuple[int, int]]:
    """(start, frames) of the parts of a file that are read."""
    size = min(round(SECONDS * info.sample_rate), info.frames)
    if PARTS * size >= info.frames:
        return [(0, info.frames)]
    return [(int(start), size) for start in np.linspace(0, info.frames - size, PARTS)]
