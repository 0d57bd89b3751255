"""Faults of a data set: in the headers of all files, in their samples, and between splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from separate.audio import NonFiniteError, UnreadableError, read, shown
from separate.config import CacheConfig
from separate.data.doctor.mixtures import CompareMixture, read_spans
from separate.data.layouts.base import FolderLayout
from separate.data.layouts.detection import hint
from separate.data.layouts.opening import Fetch, Opening
from separate.data.layouts.track_files import SplitFiles, TrackFiles
from separate.data.storage.parallel import in_parallel
from separate.data.tracks import Piece
from separate.errors import SeparateError

BLOCK = 2**20  # samples read at a time when a whole file is read
SILENT = 10 ** (-80 / 20)  # peak
CLIPPED = 1e-3  # share of samples at the largest value, three or more in a row
OFFSET = 0.01  # mean of the samples that is reported if it is also a tenth of their standard deviation
FIXES = {
    "nothing found": "name the layout with data=, its folder with data.root=, its folders of splits with data.splits=",
    "layout": "mend or remove these, or name other sources with data.sources=",
    "unreadable": "copy or convert these again",
    "channels": "convert these, or train in mono with data.channels=1",
    "rates": "is one of them wrong? they are resampled to data.sample_rate, at every reading unless cache=audio",
    "not a number": "mend or remove these; training would stop at them",
    "silent": "remove these unless silence is meant: a silent source has no score",
    "clipped": "take originals that are not clipped, or leave these out",
    "constant offset": "remove the mean (a high-pass filter at 20 Hz)",
    "same audio in two splits": "remove one of each pair: scores on training data say nothing",
    "speakers in two splits": "split by speaker, unless scores for speakers of the training data are meant",
    "sum": "mix again, or take the sum of the sources (data.mixture=sum where the layout has it)",
    "short": "use a smaller data.excerpt, or leave these out: they are padded with silence",
}


@dataclass
class Finding:
    """One kind of fault in one split.  places: `path: reason`.  fatal: training would stop, or give false scores."""

    kind: str
    split: str
    places: list[str]
    fatal: bool = False

    @property
    def fix(self) -> str:
        return FIXES[self.kind]


@dataclass
class Samples:
    """The samples of one file.  trouble: {kind: reason}.  digest: of the audio, None for a silent or faulty file."""

    path: str
    trouble: dict[str, str] = field(default_factory=dict)
    digest: str | None = None


def examine(layout: FolderLayout, splits: Sequence[str], cache: CacheConfig) -> list[Finding]:
    """All findings of all splits; faults of the files raise no error.  cache: where headers are remembered."""
    opening = Opening(cache=cache)
    findings: list[Finding] = []
    found: dict[str, SplitFiles] = {}
    contents: dict[str, dict[str, list[str]]] = {}  # of each split: the paths of the files with the same audio
    for split in splits:
        try:
            found[split] = layout.inspect(split, opening)
        except SeparateError as error:
            other = hint(layout)
            findings.append(Finding("nothing found", split, [f"{error}{f'; {other}' if other else ''}"], fatal=True))
            continue
        findings += _of_layout(layout, split, found[split])
        findings += _of_headers(layout, split, found[split].files)
        read_one = _ReadSamples(layout.fetcher(opening))
        samples = in_parallel(read_one, found[split].files, layout.workers, f"{split}: reading samples")
        findings += _of_samples(split, samples)
        contents[split] = defaultdict(list)
        for one in samples:
            if one.digest:
                contents[split][one.digest].append(one.path)
        findings += _of_mixtures(layout, split, found[split].readable, opening)
    return findings + _between_splits(layout, found, contents)


def _of_layout(layout: FolderLayout, split: str, found: SplitFiles) -> list[Finding]:
    """Files that are missing, unreadable or do not fit each other, and tracks shorter than an excerpt."""
    unreadable = [problem for problem in found.problems if "truncated" in problem or "not readable" in problem]
    rate = layout.sample_rate
    lengths = ((track.name, track.length(rate)) for track in found.tracks)
    short = [f"{name}: {length / rate:.3g} s" for name, length in lengths if length < round(layout.excerpt * rate)]
    return [
        *_if_any("unreadable", split, unreadable, fatal=True),
        *_if_any("layout", split, [problem for problem in found.problems if problem not in unreadable], fatal=True),
        *_if_any("short", split, short if split == "train" else []),
    ]


def _of_headers(layout: FolderLayout, split: str, files: Sequence[Piece]) -> list[Finding]:
    """Sample rates and channels that differ from those of most files, or that cannot be converted."""
    rate, most = (_usual(getattr(info, name) for _, info in files) for name in ("sample_rate", "channels"))
    rates = [f"{shown(path)}: {info.sample_rate} Hz, most have {rate}" for path, info in files
             if info.sample_rate != rate]  # fmt: skip
    unfit = [f"{shown(path)}: {info.channels} channels" for path, info in files
             if layout.channels != 1 and info.channels not in (1, layout.channels)]  # fmt: skip
    other = [f"{shown(path)}: {info.channels} channels, most have {most}" for path, info in files
             if info.channels != most]  # fmt: skip
    return [*_if_any("rates", split, rates), *_if_any("channels", split, unfit or other, fatal=bool(unfit))]


def _usual(values: Iterable[int]) -> int:
    """The most frequent value, 0 of none."""
    counts = Counter(values).most_common(1)
    return counts[0][0] if counts else 0


class _ReadSamples:
    """Read some parts of a file, and all of it if these are silent."""

    def __init__(self, fetch: Fetch | None) -> None:
        self.fetch = fetch

    def __call__(self, piece: Piece) -> Samples:
        if self.fetch is not None:
            self.fetch(piece.path)
        return _read_samples(piece)


def _read_samples(piece: Piece) -> Samples:
    path, info = piece
    found = Samples(shown(path))
    try:
        audio = np.concatenate([read(path, start, size) for start, size in read_spans(info)], axis=1)
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
    found.trouble.update(_distortions(audio, peak))
    found.digest = hashlib.sha256(np.round(audio * 2**12).astype(np.int16).tobytes()).hexdigest()
    return found


def _distortions(audio: np.ndarray, peak: float) -> dict[str, str]:
    """{kind: reason} for clipping and a constant offset.  audio: (C, T)."""
    found = {}
    flat = np.abs(audio) >= max(0.99, peak)  # clipped samples lie at one value near full scale
    runs = flat[:, 2:] & flat[:, 1:-1] & flat[:, :-2]
    if runs.mean() > CLIPPED:
        found["clipped"] = f"{100 * runs.mean():.2g} % of the samples at {peak:.4g}"
    mean, deviation = audio.mean(axis=1), audio.std(axis=1)
    worst = int(np.abs(mean).argmax())
    if abs(mean[worst]) > max(OFFSET, 0.1 * deviation[worst]):
        found["constant offset"] = f"{mean[worst]:+.3f}"
    return found


def _of_samples(split: str, samples: Iterable[Samples]) -> list[Finding]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for one in samples:
        for kind, reason in one.trouble.items():
            kinds[kind].append(f"{one.path}: {reason}")
    return [Finding(kind, split, places, kind in ("unreadable", "not a number")) for kind, places in kinds.items()]


def _of_mixtures(layout: FolderLayout, split: str, tracks: Sequence[TrackFiles], opening: Opening) -> list[Finding]:
    """Mixtures that are not the sum of their sources, where they should be."""
    if not layout.is_sum:
        return []
    compare = CompareMixture(layout.sources, layout.fetcher(opening))
    reasons = in_parallel(compare, tracks, layout.workers, f"{split}: adding up sources")
    used = any(one.mixture is not None for one in tracks)  # without, training takes the sum
    return _if_any("sum", split, [reason for reason in reasons if reason], fatal=used)


def _between_splits(
    layout: FolderLayout, found: dict[str, SplitFiles], contents: dict[str, dict[str, list[str]]]
) -> list[Finding]:
    """Audio and speakers that two splits share."""
    findings = []
    for one, other in combinations(found, 2):
        pairs = [(contents[one][key][0], contents[other][key][0]) for key in contents[one] if key in contents[other]]
        cut = _cut_up(found[one]) & _cut_up(found[other])  # two parts of one file differ
        same = [f"{first} = {second}" for first, second in pairs if first != second or first not in cut]
        findings += _if_any("same audio in two splits", f"{one}, {other}", same, fatal=True)
        if layout.interchangeable:
            shared = sorted(layout.speakers(found[one]) & layout.speakers(found[other]))
            findings += _if_any("speakers in two splits", f"{one}, {other}", shared)
    return findings


def _cut_up(found: SplitFiles) -> set[str]:
    """The files of tracks that are parts of their files."""
    return {path for one in found.readable if one.start or one.duration is not None for path in one.paths}


def _if_any(kind: str, split: str, places: list[str], fatal: bool = False) -> list[Finding]:
    return [Finding(kind, split, places, fatal)] if places else []


def table(findings: Sequence[Finding], most: int = 10) -> str:
    """The findings as text, fatal ones first.  most: places shown of each finding."""
    lines = []
    for finding in sorted(findings, key=lambda finding: not finding.fatal):
        count = len(finding.places)
        lines.append(f"{'ERROR' if finding.fatal else 'warning'}  {finding.split}: {finding.kind} ({count})")
        lines += [f"  {place}" for place in finding.places[:most]]
        if count > most:
            lines.append(f"  … and {count - most} more (--json lists all)")
        lines.append(f"  -> {finding.fix}")
    return "\n".join(lines) if lines else "nothing wrong was found"
