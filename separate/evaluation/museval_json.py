"""Scores in the format of museval (SiSEC 2018): a JSON file for each track, with the BSS Eval v4 metrics of each frame.

{"targets": [{"name": SOURCE, "frames": [{"time": s, "duration": s, "metrics": {"SDR", "SIR", "SAR", "ISR"}}]}]},
rounded to 1e-5 dB; NaN for frames without a score.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from separate.errors import UsageError
from separate.evaluation.results import Results, Row, described, unlike
from separate.files import TextError, printable, read_text, replace_file

NAMES = {"SDR": "sdr", "SIR": "sir", "SAR": "sar", "ISR": "isr"}  # of museval: ours
SECONDS = 1.0  # window and hop of a frame
DIGITS = 5  # of museval


def writable(results: Results) -> bool:
    """Whether the results have the frames of all metrics of BSS Eval v4."""
    framed = {row.metric for row in results.rows if row.frames}
    return framed.issuperset(NAMES.values())


def write(results: Results, folder: Path, split: str = "test") -> None:
    """Write FOLDER/METHOD/SPLIT/TRACK.json if the results have BSS Eval v4; else remove those of an earlier evaluation.

    museval reads FOLDER/METHOD if the split is test.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not writable(results):
        return
    frames = {(row.method, row.track, row.source, row.metric): row.frames for row in results.rows}
    names: dict[str, str] = {}
    for track in results.tracks:
        names[track] = unlike(file_name(track), list(names.values()))
    for method in results.methods:
        for track, name in names.items():
            targets = [
                _target(source, {name: frames[method, track, source, own] for name, own in NAMES.items()})
                for source in results.sources
            ]
            text = json.dumps({"targets": targets, "museval_version": "0.4.1"}, indent=2)
            replace_file(folder / method / split / f"{name}.json", text.encode())


def file_name(track: str) -> str:
    """The name of a track as a file's."""
    return printable(track).replace("/", "_").replace("\\", "_").replace("\0", "_")[:200]


def _target(source: str, frames: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    count = len(frames["SDR"])
    return {
        "name": printable(source),
        "frames": [
            {
                "time": number * SECONDS,
                "duration": SECONDS,
                "metrics": {name: _rounded(values[number]) for name, values in frames.items()},
            }
            for number in range(count)
        ],
    }


def _rounded(value: float) -> float:
    """As museval rounds; it has NaN for infinity."""
    return round(value, DIGITS) if math.isfinite(value) else math.nan


def holds(folder: Path) -> bool:
    """Whether a folder, or folders in it, hold JSON files, and no scores of separate-eval."""
    return folder.is_dir() and not (folder / "scores.csv").exists() and any(folder.rglob("*.json"))


def read(folder: Path, method: str = "estimates") -> Results:
    """The scores in the JSON files of museval in a folder and its subfolders; the track is the file's name.

    Score of a track: the median over the frames without NaN.  UsageError for files of another format.
    """
    results = Results([], [method], {own: described(own, _description(name)) for name, own in NAMES.items()}, {})
    for path in sorted(folder.rglob("*.json")):
        try:
            targets = json.loads(read_text(path))["targets"]
            rows = [row for target in targets for row in _rows(target, path.stem, method)]
        except (TextError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = str(error) if isinstance(error, TextError) else "is not a file of museval's scores"
            raise UsageError(f"{path} {said}; give a folder with the JSON files of museval") from None
        if path.stem in results.tracks:
            raise UsageError(f"{folder} holds the scores of {path.stem} twice; give the folder of one method and split")
        results.rows += rows
        results.tracks.append(path.stem)
        results.sources += [name for name in dict.fromkeys(row.source for row in rows) if name not in results.sources]
    if not results.tracks:
        raise UsageError(f"{folder} holds no JSON files of museval's scores")
    return results


def _description(name: str) -> dict[str, Any]:
    return {"label": name, "unit": "dB", "higher_is_better": True, "aggregate": "median over frames"}


def _rows(target: Mapping[str, Any], track: str, method: str) -> list[Row]:
    rows = []
    for name, own in NAMES.items():
        frames = tuple(_value(frame["metrics"].get(name)) for frame in target["frames"])
        known = [value for value in frames if not math.isnan(value)]
        score = statistics.median(known) if known else math.nan
        rows.append(Row(track, str(target["name"]), method, own, score, frames))
    return rows


def _value(value: Any) -> float:
    return math.nan if value is None else float(value)
