"""separate-eval compare: paired differences between evaluations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from separate.cli import reporting_errors
from separate.errors import UsageError


def _parser() -> argparse.ArgumentParser:
    """argparse, because Hydra's grammar reserves characters that the names of folders may contain."""
    parser = argparse.ArgumentParser(
        prog="separate-eval compare",
        description="Compare evaluations with the first of them: the difference on each track, its mean and median "
        "with a bootstrap interval, a table, compare.csv, compare.json and a picture.",
    )
    folder = "a run with one evaluation, RUN/eval/SPLIT, or a folder with JSON files of museval"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument("--method", help="compare this method of each, e.g. 'tPSA mask' (default: model or estimates)")
    metric = "a metric to compare, may be repeated (default: all that the evaluations have in common)"
    parser.add_argument("--metric", action="append", dest="metrics", help=metric)
    parser.add_argument("-o", "--out", default="compare", type=Path, help="folder for the files (default: compare)")
    parser.add_argument("--confidence", default=0.95, type=float, help="of the intervals (default: 0.95)")
    parser.add_argument("--resamples", default=9999, type=int, help="of the bootstrap (default: 9999)")
    parser.add_argument("--seed", default=0, type=int, help="of the bootstrap (default: 0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """arguments: without the word `compare`; None for those of the command line."""
    with reporting_errors("separate-eval compare"):
        compare(_parser().parse_args(arguments))


def compare(parsed: argparse.Namespace) -> None:
    from separate.evaluation import compare_report
    from separate.evaluation.compare import Options, compare

    if not 0 < parsed.confidence < 1:
        raise UsageError(f"--confidence {parsed.confidence:g} must lie between 0 and 1; 0.95 is usual")
    if not 100 <= parsed.resamples <= 10**6:
        raise UsageError(f"--resamples {parsed.resamples} must lie between 100 and 1000000; 9999 is usual")
    if parsed.seed < 0:
        raise UsageError(f"--seed {parsed.seed} must be at least 0")
    options = Options(parsed.method, parsed.metrics, parsed.confidence, parsed.resamples, parsed.seed)
    found = compare(parsed.folders, options)
    compare_report.write(found, parsed.out)
    print(compare_report.text(found))
    print(f"differences: {parsed.out}/compare.csv, compare.json\npicture: {parsed.out}/compare.png")
