"""Spans of signals at the rate and channels of a data set."""

from __future__ import annotations

import numpy as np

from separate.audio import read_span
from separate.data.tracks import Signal


class Reader:
    """Reads from the files themselves."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.sample_rate = sample_rate
        self.channels = channels

    def read(self, signal: Signal, start: int, frames: int) -> np.ndarray:
        """Samples start to start + frames, counted at the data set's rate -> (C, frames); silence past the end."""
        spans = [read_span(path, info, start, frames, self.sample_rate, self.channels) for path, info in signal]
        if len(spans) == 1:
            return spans[0]
        return np.sum(spans, axis=0) if spans else np.zeros((self.channels, frames), np.float32)
