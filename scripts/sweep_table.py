#!/usr/bin/env python3
"""Turn a sweep into a table: a row for each setting, mean and standard deviation of its test scores over the seeds.

    separate-train experiment=targets data=pools data.root=DIR
    python scripts/sweep_table.py multirun/DATE/TIME --picture targets.png

Runs without scores are scored first, with separate-eval.  The table is Markdown; the best row comes first.  Metrics,
labels and units are those of the summaries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

Runs = list[dict[str, float]]  # of each seed: {metric: mean over all sources and tracks}


def jobs(sweep: Path) -> list[Path]:
    """The runs of a sweep with a best checkpoint, in the order of their numbers."""
    found = [path.parent.parent for path in sweep.glob("*/checkpoints/best.ckpt")]
    return sorted(found, key=lambda job: (len(job.name), job.name))


def overrides(job: Path) -> list[str]:
    return [str(override) for override in OmegaConf.load(job / ".hydra" / "overrides.yaml")]


def summary_of(job: Path, split: str) -> dict[str, Any]:
    """The summary of a split; run separate-eval first if there is none or if it is older than the checkpoint."""
    summary = job / "eval" / split / "summary.json"
    if not summary.exists() or summary.stat().st_mtime < (job / "checkpoints" / "best.ckpt").stat().st_mtime:
        command = [sys.executable, "-m", "separate.cli.evaluate", f"run='{job}'", f"split={split}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job} could not be scored: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


@dataclass
class Sweep:
    """settings: {overrides that differ between jobs: runs}, the best first; metrics: label, unit, direction."""

    settings: dict[str, Runs]
    metrics: dict[str, dict[str, Any]]

    @property
    def headings(self) -> dict[str, str]:
        return {name: ", ".join(filter(None, (m["label"], m["unit"]))) for name, m in self.metrics.items()}


def collect(folder: Path, split: str, best: str) -> Sweep:
    """The scores of a sweep, sorted by the mean of the metric `best`."""
    found = jobs(folder)
    if not found:
        sys.exit(f"{folder} holds no runs with a best checkpoint; give the folder that separate-train -m made")
    common = set.intersection(*(set(overrides(job)) for job in found))
    sweep = Sweep({}, {})
    for job in tqdm(found, "scoring", leave=False, disable=None):
        own = [override for override in overrides(job) if override not in common and not override.startswith("seed=")]
        summary = summary_of(job, split)
        means = {name: values["mean"] for name, values in summary["scores"]["model"]["all"].items()}
        sweep.settings.setdefault(" ".join(own) or "all runs", []).append(means)
        unlabelled = {name: {"label": name, "unit": "", "higher_is_better": True} for name in means}
        sweep.metrics = {**unlabelled, **summary.get("metrics", {}), **sweep.metrics}
    if best not in sweep.metrics:
        sys.exit(f"{folder} has no metric {best}; choose from {', '.join(sweep.metrics)}")
    upwards = sweep.metrics[best]["higher_is_better"]
    sweep.settings = dict(sorted(sweep.settings.items(), key=lambda item: mean(item[1], best), reverse=upwards))
    return sweep


def mean(runs: Runs, metric: str) -> float:
    return statistics.fmean(values(runs, metric))


def values(runs: Runs, metric: str) -> list[float]:
    return [run[metric] for run in runs if metric in run]


def table(sweep: Sweep, split: str) -> str:
    lines = [
        f"| {split} split, mean ± standard deviation over the seeds | "
        + " | ".join(sweep.headings.values())
        + " | runs |",
        "|---" * (len(sweep.metrics) + 2) + "|",
    ]
    for name, runs in sweep.settings.items():
        cells = [f"{mean(runs, metric):.2f} ± {_standard_deviation(runs, metric):.2f}" for metric in sweep.metrics]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {len(runs)} |")
    return "\n".join(lines)


def _standard_deviation(runs: Runs, metric: str) -> float:
    return statistics.stdev(values(runs, metric)) if len(runs) > 1 else 0.0


def picture(sweep: Sweep, best: str, path: Path) -> None:
    """A dot for each run and a bar at each mean, the best setting on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 * len(sweep.settings) + 1), layout="constrained")
    axis: Any = figure.subplots()
    for row, runs in enumerate(reversed(sweep.settings.values())):
        axis.plot(values(runs, best), [row] * len(runs), "o", color="C0", alpha=0.6)
        axis.plot([mean(runs, best)], [row], "|", color="black", markersize=16)
    axis.set_yticks(range(len(sweep.settings)), list(reversed(sweep.settings)))
    axis.set_xlabel(sweep.headings[best])
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep, multirun/DATE/TIME")
    parser.add_argument("--split", default="test", help="test, valid or train")
    parser.add_argument("--metric", default="si_sdri", help="to sort the rows by and to draw (default: si_sdri)")
    parser.add_argument("--picture", type=Path, help="PNG or PDF file for a figure of every run")
    arguments = parser.parse_args()
    sweep = collect(arguments.sweep, arguments.split, arguments.metric)
    print(table(sweep, arguments.split))
    if arguments.picture:
        picture(sweep, arguments.metric, arguments.picture)


if __name__ == "__main__":
    main()
