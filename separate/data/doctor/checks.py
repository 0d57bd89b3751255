"""What is wrong with a data set: headers of all files, samples of each, and the splits against each other."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from separate.audio import Info, NonFiniteError, UnreadableError, probe, read, shown
from separate.config import CacheConfig, DataConfig, FolderConfig, MixtureConfig, PoolsConfig, TaskConfig
from separate.data import fetcher, headers_of, listing
from separate.data.layouts.base import NOISE, Sought, check
from separate.data.layouts.detection import looks_like
from separate.data.layouts.pools import list_pools
from separate.data.storage.headers import Headers
from separate.data.storage.parallel import in_parallel
from separate.data.tracks import Piece
from separate.errors import DataError, SeparateError

BLOCK = 2**20  # samples read at a time where all are read
PLACES, SECONDS = 5, 1.0  # how many parts of a file are read, and how long each is
SILENT = 10 ** (-80 / 20)  # peak
CLIPPED = 1e-3  # share of the samples that lie at the largest value, three or more in a row
OFFSET = 0.01  # mean of the samples; and it is to be a tenth of their deviation
SUM = -30.0  # dB, above which what a mixture holds besides its sources is too much
FIXES = {
    "nothing found": "name the layout with data=, its folder with data.root=, its folders of splits with data.splits=",
    "layout": "mend or remove these, or name other sources with data.sources=",
    "unreadable": "copy or convert these again",
    "channels": "convert these, or train in mono with data.channels=1",
    "rates": "is one of them wrong? they are resampled to data.sample_rate, at every reading unless cache=audio",
    "not a number": "mend or remove these; training would stop at them",
    "silent": "remove these where silence is not meant: a source that is silent has no score",
    "clipped": "take originals that are not clipped, or leave these out",
    "constant offset": "remove the mean (a high-pass filter at 20 Hz)",
    "same audio in two splits": "remove one of each pair: scores on what was trained on say nothing",
    "speakers in two splits": "split by speaker, unless scores for speakers that were trained on are meant",
    "sum": "mix again, or take the sum of the sources (data.mixture=sum where the layout has it)",
    "short": "use a smaller data.excerpt, or leave these out: they are padded with silence",
}


@dataclass
class Finding:
    """One kind of trouble in one split.  places: by path, with the reason; fatal: training would not start, or lie."""

    kind: str
    split: str
    places: list[str]
    fatal: bool = False

    @property
    def fix(self) -> str:
        return FIXES[self.kind]


@dataclass
class Samples:
    """What the samples of one file say.  trouble: {kind: reason}; print: of its content, None where it is silent."""

    path: str
    trouble: dict[str, str] = field(default_factory=dict)
    print: str | None = None


@dataclass
class Found:
    """What a layout lists in one split: tracks and single files."""

    sought: list[Sought] = field(default_factory=list)
    files: list[Piece] = field(default_factory=list)


def examine(config: FolderConfig, splits: Sequence[str], cache: CacheConfig) -> list[Finding]:
    """Everything at once; nothing is raised for what is wrong with the files.  cache: where headers are remembered."""
    headers = headers_of(config, cache)
    findings: list[Finding] = []
    found: dict[str, Found] = {}
    prints: dict[str, dict[str, list[str]]] = {}
    for split in splits:
        try:
            found[split] = _list(config, split, headers, cache, findings)
        except SeparateError as error:
            hint = looks_like(Path(config.root).expanduser(), config)
            findings.append(Finding("nothing found", split, [f"{error}{f'; {hint}' if hint else ''}"], fatal=True))
            continue
        files = found[split].files
        findings += _headers(config, split, files)
        samples = in_parallel(_Look(fetcher(config, cache)), files, config.workers, f"{split}: reading samples")
        findings += _of_samples(split, samples)
        prints[split] = defaultdict(list)
        for one in samples:
            if one.print:
                prints[split][one.print].append(one.path)
        if _is_a_sum(config):
            sums = _Sums(config, fetcher(config, cache))
            wrong = in_parallel(sums, found[split].sought, config.workers, f"{split}: adding up sources")
            findings += _if_any("sum", split, [reason for reason in wrong if reason], fatal=_reads_mixture(config))
    findings += _between(config, found, prints)
    return findings


def _list(config: FolderConfig, split: str, headers: Headers, cache: CacheConfig, findings: list[Finding]) -> Found:
    if isinstance(config, PoolsConfig):
        root = Path(config.root).expanduser()
        pools = list_pools(root, config.splits, split, config.sources, config.interchangeable, headers)
        return Found([], [clip for clips in pools.values() for clip in clips])
    listed = listing(config, split, cache)
    if not listed.sought and not listed.problems:
        raise DataError(f"no tracks found; looked for {listed.looked_for}")
    tracks, problems = check(listed, headers)
    unreadable = [problem for problem in problems if "truncated" in problem or "not readable" in problem]
    findings += _if_any("unreadable", split, unreadable, fatal=True)
    findings += _if_any("layout", split, [p for p in problems if p not in unreadable], fatal=True)
    frames = round(config.excerpt * config.sample_rate)
    short = [f"{t.name}: {t.length(config.sample_rate) / config.sample_rate:.3g} s" for t in tracks
             if t.length(config.sample_rate) < frames]  # fmt: skip
    findings += _if_any("short", split, short if split == "train" else [])
    infos, _ = listed.headers(headers)
    files = [Piece(path, info) for path, info in infos.items() if info.frames]
    return Found([one for one in listed.sought if all(path in infos for path in one.paths)], files)


def _headers(config: DataConfig, split: str, files: Sequence[Piece]) -> list[Finding]:
    rates = Counter(info.sample_rate for _, info in files)
    usual = rates.most_common(1)[0][0] if rates else 0
    odd = [
        f"{shown(path)}: {info.sample_rate} Hz, most have {usual}" for path, info in files if info.sample_rate != usual
    ]
    unfit = [
        f"{shown(path)}: {info.channels} channels"
        for path, info in files
        if config.channels != 1 and info.channels not in (1, config.channels)
    ]
    counts = Counter(info.channels for _, info in files)
    most = counts.most_common(1)[0][0] if counts else 0
    other = [
        f"{shown(path)}: {info.channels} channels, most have {most}" for path, info in files if info.channels != most
    ]
    return [
        *_if_any("rates", split, odd),
        *_if_any("channels", split, unfit or other, fatal=bool(unfit)),
    ]


class _Look:
    """Read some places of a file; all of it where these are silent."""

    def __init__(self, fetch: Callable[[str], None] | None) -> None:
        self.fetch = fetch

    def __call__(self, piece: Piece) -> Samples:
        if self.fetch is not None:
            self.fetch(piece.path)
        return _look(piece)


def _look(piece: Piece) -> Samples:
    path, info = piece
    found = Samples(shown(path))
    try:
        audio = np.concatenate([read(path, start, size) for start, size in _places(info)], axis=1)
        peak = float(np.abs(audio).max(initial=0))
        if peak < SILENT:
            blocks = (read(path, start, min(BLOCK, info.frames - start)) for start in range(0, info.frames, BLOCK))
            if all(np.abs(block).max() < SILENT for block in blocks):
                found.trouble["silent"] = "all of it"
            return found
    except NonFiniteError as error:
        found.trouble["not a number"] = str(error).removeprefix(f"{shown(path)}: ")
        return found
    except UnreadableError as error:
        found.trouble["unreadable"] = str(error).removeprefix(f"{shown(path)}: ")
        return found
    flat = np.abs(audio) >= max(0.99, peak)  # what is cut off lies at one value, and that is near full scale
    runs = flat[:, 2:] & flat[:, 1:-1] & flat[:, :-2]
    if runs.mean() > CLIPPED:
        found.trouble["clipped"] = f"{100 * runs.mean():.2g} % of the samples at {peak:.4g}"
    mean, deviation = audio.mean(axis=1), audio.std(axis=1)
    worst = int(np.abs(mean).argmax())
    if abs(mean[worst]) > max(OFFSET, 0.1 * deviation[worst]):
        found.trouble["constant offset"] = f"{mean[worst]:+.3f}"
    found.print = hashlib.sha256(np.round(audio * 2**12).astype(np.int16).tobytes()).hexdigest()
    return found


def _places(info: Info) -> list[tuple[int, int]]:
    """(start, frames) of what is read of a file."""
    size = min(round(SECONDS * info.sample_rate), info.frames)
    if PLACES * size >= info.frames:
        return [(0, info.frames)]
    return [(int(start), size) for start in np.linspace(0, info.frames - size, PLACES)]


def _of_samples(split: str, samples: Iterable[Samples]) -> list[Finding]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for one in samples:
        for kind, reason in one.trouble.items():
            kinds[kind].append(f"{one.path}: {reason}")
    return [Finding(kind, split, places, kind in ("unreadable", "not a number")) for kind, places in kinds.items()]


def _reads_mixture(config: DataConfig) -> bool:
    return not isinstance(config, MixtureConfig)


def _is_a_sum(config: DataConfig) -> bool:
    """Whether the mixture of this layout is meant to hold its sources alone."""
    if isinstance(config, TaskConfig):
        return config.task == "sep_clean" or NOISE in config.sources
    if isinstance(config, MixtureConfig):
        return config.layout in ("stems", "shards") and config.mixture == "sum"
    return config.layout == "wsj0mix"


class _Sums:
    """Why a mixture is not the sum of its sources, None where it is or has no file."""

    def __init__(self, config: DataConfig, fetch: Callable[[str], None] | None) -> None:
        self.names = config.sources
        self.fetch = fetch

    def __call__(self, one: Sought) -> str | None:
        path = one.mixture or next(iter(one.beside), None)
        if path is None or any(len(files) != 1 for files in one.sources):
            return None
        try:
            if self.fetch is not None:
                self.fetch(path)
            return self._compare(path, [files[0] for files in one.sources])
        except (UnreadableError, ValueError):
            return None  # has been said

    def _compare(self, path: str, sources: list[str]) -> str | None:
        spans = _places(probe(path))
        mixture, *parts = (np.concatenate([read(p, *span) for span in spans], axis=1) for p in (path, *sources))
        if any(part.shape != mixture.shape for part in parts):
            return None
        stacked = np.stack(parts)
        left = _decibels(mixture - stacked.sum(0), mixture)
        if left <= SUM:
            return None
        return f"{shown(path)}: {self._reason(mixture, stacked)}what is left is {left:+.0f} dB of it"

    def _reason(self, mixture: np.ndarray, sources: np.ndarray) -> str:
        """A mistake that explains what is left, or nothing."""
        total = sources.sum(0)
        for name, source in zip(self.names, sources, strict=True):
            if _decibels(mixture - total + 2 * source, mixture) <= SUM:
                return f"{name} is inverted; "
            if _decibels(mixture - total + source, mixture) <= SUM:
                return f"{name} is not in it; "
            if len(source) == 2 and _decibels(mixture - total + source - source[::-1], mixture) <= SUM:
                return f"left and right of {name} are swapped; "
        if len(mixture) == 2:
            for side, channel in (("left", 0), ("right", 1)):
                if _decibels(mixture[channel] - total[channel], mixture[channel]) <= SUM:
                    return f"only its {side} channel is the sum; "
        gain = float((mixture * total).sum() / max(float((total**2).sum()), 1e-12))
        if _decibels(mixture - gain * total, mixture) <= SUM:
            return f"it is the sum at {20 * np.log10(abs(gain) + 1e-12):+.1f} dB{', inverted' if gain < 0 else ''}; "
        return ""


def _decibels(left: np.ndarray, whole: np.ndarray) -> float:
    return float(10 * np.log10(((left**2).sum() + 1e-12) / ((whole**2).sum() + 1e-12)))


def _between(config: FolderConfig, found: dict[str, Found], prints: dict[str, dict[str, list[str]]]) -> list[Finding]:
    """What is on both sides of a split."""
    findings = []
    splits = list(found)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            pairs = [(prints[one][key][0], prints[other][key][0]) for key in prints[one] if key in prints[other]]
            cut = _cut_up(found[one]) & _cut_up(found[other])  # two parts of one file are not the same
            same = [f"{first} = {second}" for first, second in pairs if first != second or first not in cut]
            findings += _if_any("same audio in two splits", f"{one}, {other}", same, fatal=True)
            shared = sorted(_speakers(config, found[one]) & _speakers(config, found[other]))
            findings += _if_any("speakers in two splits", f"{one}, {other}", shared)
    return findings


def _cut_up(found: Found) -> set[str]:
    """Files of which tracks are parts."""
    return {path for one in found.sought if one.start or one.duration is not None for path in one.paths}


def _speakers(config: FolderConfig, found: Found) -> set[str]:
    """Names of the speakers, where folders or the file names of WSJ0 and LibriSpeech tell."""
    if not config.interchangeable:
        return set()
    if isinstance(config, PoolsConfig):
        return {Path(path).parent.name for path, _ in found.files}
    speakers = set()
    for one in found.sought:
        if config.layout == "librimix":
            speakers.update(re.findall(r"(\d+)-\d+-\d+", one.name))
        else:
            speakers.update(re.findall(r"(?:^|_)([0-9a-z]{3})[0-9a-z]{5}(?=_)", one.name))
    return speakers


def _if_any(kind: str, split: str, places: list[str], fatal: bool = False) -> list[Finding]:
    return [Finding(kind, split, places, fatal)] if places else []


def table(findings: Sequence[Finding], most: int = 10) -> str:
    """The findings as text, those first that must be mended."""
    lines = []
    for finding in sorted(findings, key=lambda finding: not finding.fatal):
        count = len(finding.places)
        lines.append(f"{'ERROR' if finding.fatal else 'warning'}  {finding.split}: {finding.kind} ({count})")
        lines += [f"  {place}" for place in finding.places[:most]]
        if count > most:
            lines.append(f"  … and {count - most} more (--json lists all)")
        lines.append(f"  -> {finding.fix}")
    return "\n".join(lines) if lines else "nothing wrong was found"
