#!/usr/bin/env python3
"""Turn a sweep into a table: a row for each setting, mean and deviation of its test scores over the seeds.

    separate-train experiment=targets data=pools data.root=DIR
    python scripts/sweep_table.py multirun/DATE/TIME --picture targets.png

Runs that were not scored yet are scored first, with separate-eval.  The table is Markdown; the best row comes first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

METRICS = {"si_sdri": "SI-SDR improvement", "si_sdr": "SI-SDR", "snr": "SNR"}  # dB


def jobs(sweep: Path) -> list[Path]:
    """The runs of a sweep that have a best checkpoint, in the order of their numbers."""
    found = [path.parent.parent for path in sweep.glob("*/checkpoints/best.ckpt")]
    return sorted(found, key=lambda job: (len(job.name), job.name))


def overrides(job: Path) -> list[str]:
    return [str(override) for override in OmegaConf.load(job / ".hydra" / "overrides.yaml")]


def scores(job: Path, split: str) -> dict[str, float]:
    """Means over all sources and tracks of a split, by metric; scored now where that is older than the checkpoint."""
    summary = job / "eval" / split / "summary.json"
    if not summary.exists() or summary.stat().st_mtime < (job / "checkpoints" / "best.ckpt").stat().st_mtime:
        command = [sys.executable, "-m", "separate.cli.evaluate", f"run='{job}'", f"split={split}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job} could not be scored: {done.stderr.strip()}")
    means = json.loads(summary.read_text())["scores"]["model"]["all"]
    return {metric: means[metric]["mean"] for metric in METRICS}


def collect(sweep: Path, split: str) -> dict[str, list[dict[str, float]]]:
    """{what makes a setting differ from the others: the scores of its seeds}, the best mean first."""
    found = jobs(sweep)
    if not found:
        sys.exit(f"{sweep} holds no runs with a best checkpoint; give the folder that separate-train -m made")
    common = set.intersection(*(set(overrides(job)) for job in found))
    settings: dict[str, list[dict[str, float]]] = {}
    for job in tqdm(found, "scoring", leave=False, disable=None):
        own = [override for override in overrides(job) if override not in common and not override.startswith("seed=")]
        settings.setdefault(" ".join(own) or "all runs", []).append(scores(job, split))
    return dict(sorted(settings.items(), key=lambda item: -mean(item[1], "si_sdri")))


def mean(runs: list[dict[str, float]], metric: str) -> float:
    return statistics.fmean(run[metric] for run in runs)


def table(settings: dict[str, list[dict[str, float]]], split: str) -> str:
    lines = [
        f"| dB, {split} split, mean ± deviation over the seeds | " + " | ".join(METRICS.values()) + " | runs |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, runs in settings.items():
        cells = [f"{mean(runs, metric):.2f} ± {_deviation(runs, metric):.2f}" for metric in METRICS]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines)


def _deviation(runs: list[dict[str, float]], metric: str) -> float:
    return statistics.stdev(run[metric] for run in runs) if len(runs) > 1 else 0.0


def picture(settings: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A dot for each run and a bar at each mean, the best setting on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 * len(settings) + 1), layout="constrained")
    axis: Any = figure.subplots()
    for row, runs in enumerate(reversed(settings.values())):
        axis.plot([run["si_sdri"] for run in runs], [row] * len(runs), "o", color="C0", alpha=0.6)
        axis.plot([mean(runs, "si_sdri")], [row], "|", color="black", markersize=16)
    axis.set_yticks(range(len(settings)), list(reversed(settings)))
    axis.set_xlabel("SI-SDR improvement, dB")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep, multirun/DATE/TIME")
    parser.add_argument("--split", default="test", help="test, valid or train")
    parser.add_argument("--picture", type=Path, help="also draw every run into this file, PNG or PDF")
    arguments = parser.parse_args()
    settings = collect(arguments.sweep, arguments.split)
    print(table(settings, arguments.split))
    if arguments.picture:
        picture(settings, arguments.picture)


if __name__ == "__main__":
    main()
