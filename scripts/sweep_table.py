#!/usr/bin/env python3
"""Score the runs of a sweep: a row for each setting, mean and standard deviation of its test scores over the seeds.

    separate-train experiment=targets data=pools data.root=DIR
    python scripts/sweep_table.py multirun/DATE/TIME --picture targets.png

Scores runs without scores first, with separate-eval.  The table is Markdown with the best row first; metrics, labels
and units come from the summaries.  The sweep's folder already holds a table of the monitored metric (sweep.txt).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from separate.sweeps.figure import picture
from separate.sweeps.results import Job, Setting, read, settings

Metrics = dict[str, dict[str, Any]]  # {metric: label, unit and direction}


def summary_of(job: Path, split: str) -> dict[str, Any]:
    """The summary of a split; runs separate-eval first if there is none, or if it is older than the checkpoint."""
    summary = job / "eval" / split / "summary.json"
    if not summary.exists() or summary.stat().st_mtime < (job / "checkpoints" / "best.ckpt").stat().st_mtime:
        command = [sys.executable, "-m", "separate.cli.evaluate", f"run='{job}'", f"split={split}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{job} could not be scored: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


def score(jobs: list[Job], split: str) -> Metrics:
    """Set the scores of each job, and return the metrics."""
    metrics: Metrics = {}
    for job in tqdm(jobs, "scoring", leave=False, disable=None):
        summary = summary_of(job.folder, split)
        job.scores = {name: values["mean"] for name, values in summary["scores"]["model"]["all"].items()}
        unlabelled = {name: {"label": name, "unit": "", "higher_is_better": True} for name in job.scores}
        metrics = {**unlabelled, **summary.get("metrics", {}), **metrics}
    return metrics


def heading(metric: dict[str, Any]) -> str:
    return ", ".join(filter(None, (metric["label"], metric["unit"])))


def table(found: list[Setting], metrics: Metrics, split: str) -> str:
    lines = [
        f"| {split} split, mean ± standard deviation over the seeds | "
        + " | ".join(map(heading, metrics.values()))
        + " | runs |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for setting in found:
        name = " ".join(f"{key}={value}" for key, value in setting.values.items()) or "all runs"
        cells = [f"{setting.mean(metric):.2f} ± {setting.deviation(metric):.2f}" for metric in metrics]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {len(setting.jobs)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep, multirun/DATE/TIME")
    parser.add_argument("--split", default="test", help="test, valid or train")
    parser.add_argument("--metric", default="si_sdri", help="metric to sort by and to draw (default: si_sdri)")
    parser.add_argument("--picture", type=Path, help="also draw the swept keys against the metric into this file")
    arguments = parser.parse_args()
    jobs = [job for job in read(arguments.sweep) if job.state == "finished"]
    if not jobs:
        sys.exit(f"{arguments.sweep} holds no finished runs of a sweep; give the folder that separate-train -m made")
    metrics = score(jobs, arguments.split)
    if arguments.metric not in metrics:
        sys.exit(f"{arguments.sweep} has no metric {arguments.metric}; choose from {', '.join(metrics)}")
    upwards = metrics[arguments.metric]["higher_is_better"]
    found = settings(jobs, arguments.metric, upwards)
    print(table(found, metrics, arguments.split))
    if arguments.picture:
        if not found[0].values:
            sys.exit("all runs have the same setting; leave --picture out, or sweep a key")
        label = f"{arguments.split} {heading(metrics[arguments.metric])}"
        picture(found, label, upwards, arguments.picture, arguments.metric)


if __name__ == "__main__":
    main()
