"""separate-eval: score a trained separator, or stems of any tool, against references; compare evaluations."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from separate.cli import in_job, run_hydra

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(cfg: DictConfig) -> float | None:
    """Score one split as a table, files and a report, and return the mean SI-SDR improvement."""
    return in_job("separate-eval", lambda: _evaluate(cfg))


def _evaluate(cfg: DictConfig) -> float | None:
    from separate.compose import from_hydra
    from separate.config import EvalConfig
    from separate.evaluation import output, tables
    from separate.evaluation.candidates import Task
    from separate.evaluation.metrics import load_metrics
    from separate.evaluation.preparation import prepare
    from separate.evaluation.processes import process_count
    from separate.evaluation.runner import evaluate
    from separate.evaluation.unfinished import Unfinished
    from separate.process import settle, thread_count

    config = from_hydra(cfg, EvalConfig)
    metrics = load_metrics(config.metrics, families=True)
    prepared = prepare(config, metrics)
    folder = prepared.folder
    with Unfinished(folder, prepared.facts) as kept:
        settle(kept.threads(thread_count("auto")))
        candidate = prepared.make()
        task = Task(metrics, process_count(config.workers, len(candidate)))
        results = evaluate(candidate, task, kept)
        results.about = prepared.about
        summary = output.write(results, candidate, folder)
        kept.remove()
    print(tables.text(summary))
    print(f"scores: {folder}/scores.csv, summary.json, table.md, table.tex\nreport: {folder}/report.html")
    found: float | None = summary["scores"][candidate.method]["all"]["si_sdri"]["mean"]
    return found


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        from separate.cli import compare

        compare.main(sys.argv[2:])
        return
    # exit with an exception, so that scoring processes end and the message is printed
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run_hydra("separate-eval", evaluate, "eval")
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
