"""Compare mixtures with the sum of their sources, and name the likely mistake if they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from separate.audio import Info, UnreadableError, probe, read, shown
from separate.data.layouts.opening import Fetch
from separate.data.layouts.track_files import TrackFiles

PARTS, SECONDS = 5, 1.0  # number and length of the parts that are read of each file
LARGEST_RESIDUAL = -30.0  # dB, level of the difference between mixture and sum


def compare_mixture(names: Sequence[str], fetch: Fetch | None, track: TrackFiles) -> str | None:
    """Compare the file of a mixture with the sum of its sources.

    Return `path: reason` if they differ, None if they agree or there is nothing to compare.  names: of the sources.
    fetch: see `Reader`.
    """
    path = track.mixture or next(iter(track.unused), None)
    if path is None or any(len(files) != 1 for files in track.sources):
        return None
    try:
        if fetch is not None:
            fetch(path)
        spans = read_spans(probe(path))
        paths = [path, *(files[0] for files in track.sources)]
        mixture, *parts = (np.concatenate([read(p, *span) for span in spans], axis=1) for p in paths)
    except (UnreadableError, ValueError):
        return None  # reported by the other checks
    if any(part.shape != mixture.shape for part in parts):
        return None
    sources = np.stack(parts)
    residual = _decibels(mixture - sources.sum(0), mixture)
    if residual <= LARGEST_RESIDUAL:
        return None
    return f"{shown(path)}: {_reason(names, mixture, sources)}the difference is {residual:+.0f} dB of it"


def _reason(names: Sequence[str], mixture: np.ndarray, sources: np.ndarray) -> str:
    """The mistake that explains the difference, or an empty string.  mixture: (C, T), sources: (S, C, T)."""
    total = sources.sum(0)
    for name, source in zip(names, sources, strict=True):
        if _decibels(mixture - total + 2 * source, mixture) <= LARGEST_RESIDUAL:
            return f"{name} is inverted; "
        if _decibels(mixture - total + source, mixture) <= LARGEST_RESIDUAL:
            return f"{name} is not in it; "
        if len(source) == 2 and _decibels(mixture - total + source - source[::-1], mixture) <= LARGEST_RESIDUAL:
            return f"left and right of {name} are swapped; "
    if len(mixture) == 2:
        for side, channel in (("left", 0), ("right", 1)):
            if _decibels(mixture[channel] - total[channel], mixture[channel]) <= LARGEST_RESIDUAL:
                return f"only its {side} channel is the sum; "
    gain = float((mixture * total).sum() / max(float((total**2).sum()), 1e-12))
    if _decibels(mixture - gain * total, mixture) <= LARGEST_RESIDUAL:
        return f"it is the sum at {20 * np.log10(abs(gain) + 1e-12):+.1f} dB{', inverted' if gain < 0 else ''}; "
    return ""


def _decibels(residual: np.ndarray, whole: np.ndarray) -> float:
    """The energy of the residual relative to that of the whole in dB."""
    return float(10 * np.log10(((residual**2).sum() + 1e-12) / ((whole**2).sum() + 1e-12)))


def read_spans(info: Info) -> list[tuple[int, int]]:
    """(start, frames) of each part to read of a file."""
    size = min(round(SECONDS * info.sample_rate), info.frames)
    if PARTS * size >= info.frames:
        return [(0, info.frames)]
    return [(int(start), size) for start in np.linspace(0, info.frames - size, PARTS)]
