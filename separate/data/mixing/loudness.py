"""Loudness by ITU-R BS.1770-4: K-weighted energy in blocks of 0.1 s, gated loudness, activity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from separate.data.storage.cache import VERSION, Cache
from separate.data.storage.parallel import in_parallel
from separate.data.storage.reading import BLOCK, Reader, Region

SECONDS = 0.1  # length of a block
ACTIVE = -60.0  # LUFS, level above which a source is active
OFFSET = -0.691  # dB; with it, a full-scale sine of 997 Hz on one channel has -3.01 LUFS
GATE, RELATIVE = -70.0, -10.0  # LUFS and LU, absolute and relative gate (BS.1770-4, eq. 5 and 6)


def k_weighting(sample_rate: int) -> np.ndarray:
    """The two filters of BS.1770-4 at any rate, as second-order sections (2, 6) (De Man, 2018)."""
    k, q, high = np.tan(np.pi * 1681.974450955533 / sample_rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    rising = np.array([high + band * k / q + k**2, 2 * (k**2 - high), high - band * k / q + k**2])
    shelf = np.concatenate([rising, _poles(k, q)]) / _poles(k, q)[0]
    k, q = np.tan(np.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    return np.array([shelf, [1, -2, 1, *_poles(k, q) / _poles(k, q)[0]]])


def _poles(k: float, q: float) -> np.ndarray:
    return np.array([1 + k / q + k**2, 2 * (k**2 - 1), 1 - k / q + k**2])


def energies(blocks: Iterable[np.ndarray], sample_rate: int) -> np.ndarray:
    """K-weighted mean square of every 0.1 s, summed over channels: consecutive chunks (C, n) -> (blocks).

    The last block may be shorter.
    """
    from scipy.signal import sosfilt

    sections, state = k_weighting(sample_rate), None
    size = round(SECONDS * sample_rate)
    found: list[np.ndarray] = []
    rest = np.zeros(0)
    for block in blocks:
        state = np.zeros((2, len(block), 2)) if state is None else state
        weighted, state = sosfilt(sections, block, axis=-1, zi=state)
        rest = np.concatenate([rest, np.square(weighted).sum(axis=0)])
        whole = len(rest) // size
        found.append(rest[: whole * size].reshape(whole, size).mean(axis=1))
        rest = rest[whole * size :]
    if len(rest):
        found.append(rest.mean(keepdims=True))
    return np.concatenate(found).astype(np.float32) if found else np.zeros(0, np.float32)


def level(energy: np.ndarray | float) -> np.ndarray:
    """Mean squares in LUFS."""
    return OFFSET + 10 * np.log10(np.maximum(energy, 1e-20))


def integrated(tenths: np.ndarray) -> float:
    """Integrated loudness in LUFS from the energies of a signal, -inf for silence (BS.1770-4, eq. 4 to 7)."""
    blocks = np.convolve(tenths, np.full(4, 0.25), "valid") if len(tenths) >= 4 else tenths.mean(keepdims=True)
    loud = blocks[level(blocks) > GATE] if len(tenths) else blocks
    if not len(loud):
        return -np.inf
    loud = loud[level(loud) > level(loud.mean()) + RELATIVE]
    return float(level(loud.mean()))


class LoudnessIndex:
    """The energies of many regions, measured once and cached as one array."""

    def __init__(self, regions: Sequence[Region], reader: Reader, cache: Cache, workers: int | str) -> None:
        files = [(region[1:], [cache.identity(path, False) for path, _ in region.signal]) for region in regions]
        facts = [VERSION, "loudness", reader.sample_rate, reader.channels, files]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        packed = cache.open(key)
        if packed is None:
            measured = in_parallel(partial(_region_energies, reader), regions, workers, "measuring levels")
            packed = np.concatenate([np.zeros(0, np.float32), *measured])[None]
            cache.add(key, packed.shape, packed.dtype, [packed], {"kind": "loudness", "regions": len(regions)})
        self.energies = packed[0]
        self.size = round(SECONDS * reader.sample_rate)
        self.offsets = np.cumsum([0, *(-(-region.length // self.size) for region in regions)])
        self._active = np.concatenate([[0], np.cumsum(level(self.energies) > ACTIVE)]).astype(np.int32)

    def of(self, region: int) -> np.ndarray:
        """The energies of one region."""
        return self.energies[self.offsets[region] : self.offsets[region + 1]]

    def activity(self, region: int, start: int, frames: int) -> float:
        """The share of blocks in which a region is active.  start, frames: of an excerpt in samples."""
        base, end = int(self.offsets[region]), int(self.offsets[region + 1])
        first = min(base + start // self.size, end)
        last = min(base - (-(start + frames) // self.size), end)
        blocks = max(1, -(-frames // self.size), last - first)
        return float(self._active[last] - self._active[first]) / blocks


def _region_energies(reader: Reader, region: Region) -> np.ndarray:
    starts = range(0, region.length, BLOCK)
    blocks = (reader.read(region, start, min(BLOCK, region.length - start)) * reader.scale for start in starts)
    return energies(blocks, reader.sample_rate)
