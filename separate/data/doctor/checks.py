"""Faults of a data set: in headers, in samples, and between splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from statistics import mode

import numpy as np

from separate.audio import NonFiniteError, UnreadableError, read, shown
from separate.config import CacheConfig
from separate.data.doctor.mixtures import compare_mixture, read_spans
from separate.data.layouts.base import FolderLayout
from separate.data.layouts.detection import hint
from separate.data.layouts.opening import Fetch, Opening
from separate.data.layouts.track_files import SplitFiles, TrackFiles
from separate.data.storage.parallel import in_parallel
from separate.data.tracks import Piece
from separate.errors import SeparateError

BLOCK = 2**20  # samples read at a time when a whole file is read
SILENT = 10 ** (-80 / 20)  # largest peak of a silent file
CLIPPED = 1e-3  # share of samples in runs of three or more at the largest value
OFFSET = 0.01  # smallest reported mean; it must also exceed a tenth of the standard deviation
FIXES = {
    "nothing found": "set the layout with data=, its folder with data.root=, its splits with data.splits=",
    "layout": "repair or remove these, or name other sources with data.sources=",
    "unreadable": "copy or convert these again",
    "channels": "convert these, or train in mono with data.channels=1",
    "rates": "check these; every reading resamples them to data.sample_rate, unless cache=audio",
    "not a number": "repair or remove these; they stop a training",
    "silent": "remove these unless the silence is intended; a silent source has no score",
    "clipped": "take originals that are not clipped, or leave these out",
    "constant offset": "remove the mean (a high-pass filter at 20 Hz)",
    "same audio in two splits": "remove one of each pair; scores on training data are too high",
    "speakers in two splits": "split by speaker, unless you want scores for speakers of the training data",
    "sum": "mix again, or take the sum of the sources (data.mixture=sum where the layout has it)",
    "short": "use a smaller data.excerpt, or remove these; they are padded with silence",
}


@dataclass
class Finding:
    """One kind of fault in one split.  places: `path: reason`.  fatal: it stops a training or makes scores wrong."""

    kind: str
    split: str
    places: list[str]
    fatal: bool = False

    @property
    def fix(self) -> str:
        return FIXES[self.kind]


@dataclass
class Samples:
    """The result of reading one file.  faults: {kind: reason}.  digest: of the audio, None if silent or unreadable."""

    path: str
    faults: dict[str, str] = field(default_factory=dict)
    digest: str | None = None


def examine(layout: FolderLayout, splits: Sequence[str], cache: CacheConfig) -> list[Finding]:
    """The findings of all splits; faulty files raise no error.  cache: its folder stores headers."""
    opening = Opening(cache=cache)
    findings: list[Finding] = []
    found: dict[str, SplitFiles] = {}
    contents: dict[str, dict[str, list[str]]] = {}  # {split: {digest: paths}}
    for split in splits:
        try:
            found[split] = layout.inspect(split, opening)
        except SeparateError as error:
            other = hint(layout)
            findings.append(Finding("nothing found", split, [f"{error}{f'; {other}' if other else ''}"], fatal=True))
            continue
        findings += _layout_findings(layout, split, found[split])
        findings += _header_findings(layout, split, found[split].files)
        read_samples = partial(_read_samples, layout.fetcher(opening))
        samples = in_parallel(read_samples, found[split].files, layout.workers, f"{split}: reading samples")
        findings += _sample_findings(split, samples)
        contents[split] = defaultdict(list)
        for sample in samples:
            if sample.digest:
                contents[split][sample.digest].append(sample.path)
        findings += _mixture_findings(layout, split, found[split].readable, opening)
    return findings + _split_findings(layout, found, contents)


def _layout_findings(layout: FolderLayout, split: str, found: SplitFiles) -> list[Finding]:
    """Missing, unreadable or inconsistent files, and tracks shorter than an excerpt."""
    unreadable = [problem for problem in found.problems if "truncated" in problem or "not readable" in problem]
    rate = layout.sample_rate
    lengths = ((track.name, track.length(rate)) for track in found.tracks)
    short = [f"{name}: {length / rate:.3g} s" for name, length in lengths if length < round(layout.excerpt * rate)]
    return [
        *_if_any("unreadable", split, unreadable, fatal=True),
        *_if_any("layout", split, [problem for problem in found.problems if problem not in unreadable], fatal=True),
        *_if_any("short", split, short if split == "train" else []),
    ]


def _header_findings(layout: FolderLayout, split: str, files: Sequence[Piece]) -> list[Finding]:
    """Sample rates and channels that differ from the most frequent ones or cannot be converted."""
    if not files:
        return []
    usual_rate, usual_channels = mode(info.sample_rate for _, info in files), mode(info.channels for _, info in files)
    rates, unfit, other = [], [], []
    for path, info in files:
        if info.sample_rate != usual_rate:
            rates.append(f"{shown(path)}: {info.sample_rate} Hz, most have {usual_rate}")
        if layout.channels != 1 and info.channels not in (1, layout.channels):
            unfit.append(f"{shown(path)}: {info.channels} channels")
        if info.channels != usual_channels:
            other.append(f"{shown(path)}: {info.channels} channels, most have {usual_channels}")
    return [*_if_any("rates", split, rates), *_if_any("channels", split, unfit or other, fatal=bool(unfit))]


def _read_samples(fetch: Fetch | None, piece: Piece) -> Samples:
    """Read some parts of a file, and all of it if these are silent."""
    path, info = piece
    found = Samples(shown(path))
    if fetch is not None:
        fetch(path)
    try:
        audio = np.concatenate([read(path, start, size) for start, size in read_spans(info)], axis=1)
        peak = float(np.abs(audio).max(initial=0))
        if peak < SILENT:
            blocks = (read(path, start, min(BLOCK, info.frames - start)) for start in range(0, info.frames, BLOCK))
            if all(np.abs(block).max() < SILENT for block in blocks):
                found.faults["silent"] = "all of it"
            return found
    except UnreadableError as error:
        kind = "not a number" if isinstance(error, NonFiniteError) else "unreadable"
        found.faults[kind] = str(error).removeprefix(f"{shown(path)}: ")
        return found
    found.faults.update(_distortions(audio, peak))
    found.digest = hashlib.sha256(np.round(audio * 2**12).astype(np.int16).tobytes()).hexdigest()
    return found


def _distortions(audio: np.ndarray, peak: float) -> dict[str, str]:
    """{kind: reason} for clipping and a constant offset.  audio: (C, T)."""
    found = {}
    flat = np.abs(audio) >= max(0.99, peak)  # clipped samples have one value near full scale
    runs = flat[:, 2:] & flat[:, 1:-1] & flat[:, :-2]
    if runs.mean() > CLIPPED:
        found["clipped"] = f"{100 * runs.mean():.2g} % of the samples at {peak:.4g}"
    mean, deviation = audio.mean(axis=1), audio.std(axis=1)
    worst = int(np.abs(mean).argmax())
    if abs(mean[worst]) > max(OFFSET, 0.1 * deviation[worst]):
        found["constant offset"] = f"{mean[worst]:+.3f}"
    return found


def _sample_findings(split: str, samples: Iterable[Samples]) -> list[Finding]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        for kind, reason in sample.faults.items():
            kinds[kind].append(f"{sample.path}: {reason}")
    return [Finding(kind, split, places, kind in ("unreadable", "not a number")) for kind, places in kinds.items()]


def _mixture_findings(
    layout: FolderLayout, split: str, tracks: Sequence[TrackFiles], opening: Opening
) -> list[Finding]:
    """Mixtures that differ from the expected sum of their sources."""
    if not layout.is_sum:
        return []
    compare = partial(compare_mixture, layout.sources, layout.fetcher(opening))
    reasons = in_parallel(compare, tracks, layout.workers, f"{split}: adding up sources")
    used = any(track.mixture is not None for track in tracks)  # else training uses the sum
    return _if_any("sum", split, [reason for reason in reasons if reason], fatal=used)


def _split_findings(
    layout: FolderLayout, found: dict[str, SplitFiles], contents: dict[str, dict[str, list[str]]]
) -> list[Finding]:
    """Audio and speakers in more than one split."""
    findings = []
    for one, other in combinations(found, 2):
        pairs = [(contents[one][key][0], contents[other][key][0]) for key in contents[one] if key in contents[other]]
        cut = _cut_files(found[one]) & _cut_files(found[other])  # two parts of one file differ
        same = [f"{first} = {second}" for first, second in pairs if first != second or first not in cut]
        findings += _if_any("same audio in two splits", f"{one}, {other}", same, fatal=True)
        if layout.interchangeable:
            shared = sorted(layout.speakers(found[one]) & layout.speakers(found[other]))
            findings += _if_any("speakers in two splits", f"{one}, {other}", shared)
    return findings


def _cut_files(found: SplitFiles) -> set[str]:
    """The files of which tracks use only a part."""
    return {path for track in found.readable if track.start or track.duration is not None for path in track.paths}


def _if_any(kind: str, split: str, places: list[str], fatal: bool = False) -> list[Finding]:
    return [Finding(kind, split, places, fatal)] if places else []


def table(findings: Sequence[Finding], most: int = 10) -> str:
    """The findings as text, fatal ones first.  most: the number of places shown of each finding."""
    lines = []
    for finding in sorted(findings, key=lambda finding: not finding.fatal):
        count = len(finding.places)
        lines.append(f"{'ERROR' if finding.fatal else 'warning'}  {finding.split}: {finding.kind} ({count})")
        lines += [f"  {place}" for place in finding.places[:most]]
        if count > most:
            lines.append(f"  … and {count - most} more (--json lists all)")
        lines.append(f"  -> {finding.fix}")
    return "\n".join(lines) if lines else "no faults found"
