"""The report of a sweep: a table with the best setting first, as text and CSV, and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from separate.files import printable, replace_file
from separate.sweeps.figure import picture
from separate.sweeps.results import STATES, Job, Setting, direction, settings, swept_keys

NAME = "sweep"  # stem of sweep.txt, sweep.csv and sweep.png


def report(folder: Path, jobs: Sequence[Job]) -> str:
    """Write the report into the folder of the sweep; return the table and the line `sweep: FOLDER`."""
    found = settings(jobs)
    text = table(found, jobs)
    replace_file(folder / f"{NAME}.txt", f"{printable(text)}\n".encode())
    replace_file(folder / f"{NAME}.csv", rows(jobs).encode())
    if any(setting.values and setting.numbers() for setting in found):
        picture(found, jobs[0].monitor, direction(jobs), folder / f"{NAME}.png")
    return f"{text}\nsweep: {folder}"


def table(found: Sequence[Setting], jobs: Sequence[Job]) -> str:
    """A line for each setting, the best first, then a line for each unfinished job with its reason."""
    counts = {state: sum(job.state == state for job in jobs) for state in STATES}
    monitor, better = jobs[0].monitor, "higher" if direction(jobs) else "lower"
    head = f"{len(jobs)} jobs: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    keys = list(found[0].values)
    lines = [[f"{monitor} ({better} is better)", "jobs", "epochs", "minutes", *keys]]
    for setting in found:
        ended = [job for job in setting.jobs if job.state in ("finished", "pruned")]
        if ended:
            most = max(job.epochs for job in ended)
            minutes = sum(job.minutes for job in ended)
            values = [
                _quantity(setting),
                str(len(ended)),
                str(most),
                f"{minutes:.1f}",
                *map(shortened, setting.values.values()),
            ]
            lines.append(values)
    others = [job for job in jobs if job.state != "finished"]
    swept = swept_keys(jobs)
    notes = [f"{job.state} {job.folder.name} ({_describe(job, swept)}): {job.reason}" for job in others]
    return "\n".join([head, *_aligned(lines), *notes])


def _quantity(setting: Setting) -> str:
    numbers = setting.numbers()
    if not numbers:
        return "never finite"
    spread = f" ± {setting.deviation():.2g}" if len(numbers) > 1 else ""
    return f"{setting.mean():.4g}{spread}{' pruned' if setting.pruned else ''}"


def _describe(job: Job, keys: Sequence[str]) -> str:
    return " ".join(f"{key}={shortened(job.overrides[key])}" for key in keys if key in job.overrides) or "all defaults"


def shortened(value: str) -> str:
    """A long number rounded to 4 digits; the search proposes 17."""
    try:
        return value if len(value) <= 7 else f"{float(value):.4g}"
    except ValueError:
        return value


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def rows(jobs: Sequence[Job]) -> str:
    """CSV with a row for each job, the best first: folder, state, value, length, swept keys, scores, reason."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(metric for job in jobs for metric in job.scores))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["folder", "state", jobs[0].monitor, "epochs", "minutes", *keys, *metrics, "reason"])
    upwards = direction(jobs)
    ranked = [job for job in jobs if job.value is not None]
    ranked.sort(key=lambda job: job.value or 0.0, reverse=upwards)
    for job in [*ranked, *(job for job in jobs if job.value is None)]:
        own = [job.overrides.get(key, "") for key in keys]
        scores = [job.scores.get(metric, "") for metric in metrics]
        value = "" if job.value is None else job.value
        row = [job.folder.name, job.state, value, job.epochs, round(job.minutes, 3), *own, *scores, job.reason]
        writer.writerow([printable(str(cell)) for cell in row])
    return out.getvalue()
