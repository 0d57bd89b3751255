"""The recipe for a metric: one function, used by validation, monitor, table, CSV, JSON, HTML and sweep table."""

import json
import math
import subprocess
import sys

import pytest
import torch

from separate import checkpoint
from separate.errors import UsageError
from separate.evaluation.metrics import METRICS, by_name, higher_is_better, metric
from separate.evaluation.scores import score
from tests.recipes import ROOT

README = ("separate/evaluation/README.md", "Add a metric")


def test_a_metric_of_ones_own_is_validated_monitored_and_reported(recipe):
    mine = recipe(*README)
    code, _, err = mine.run(0)
    assert code == 0, err
    run = mine.folder / "runs" / "mine"
    validated = json.loads((run / "metrics.jsonl").read_text())
    assert validated["valid/level_error"] > 0
    assert checkpoint.read(run / "checkpoints" / "last.ckpt")["training"]["best"] == validated["valid/level_error"]

    code, out, err = mine.run(1)
    assert code == 0, err
    assert "level error, dB" in out
    folder = run / "eval" / "test"
    assert ",model,level_error," in (folder / "scores.csv").read_text()
    assert "level error, dB" in (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["level_error"] == {"label": "level error", "unit": "dB", "higher_is_better": False}
    assert summary["scores"]["model"]["all"]["level_error"]["mean"] > 0

    code, _, err = mine.run(2, without="trust=[mypackage]")
    assert code == 2
    assert "mypackage.metrics.level_error comes from a package that is not trusted" in err
    code, _, err = mine.run(2, "trainer.epochs=2")
    assert code == 0, err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2

    (run / "job.json").write_text(json.dumps({"identity": ""}))  # a sweep of one job
    table = [sys.executable, str(ROOT / "scripts" / "sweep_table.py"), str(run.parent), "--metric", "level_error"]
    shown = subprocess.run(table, capture_output=True, text=True)
    assert "| level error, dB |" in shown.stdout, shown.stderr


def test_a_lower_score_is_better_where_the_metric_says_so():
    @metric(label="error", higher_is_better=False)
    def error(estimates, references, mixture):
        return (estimates - references).abs().mean((-2, -1))

    metrics = by_name([*METRICS.values(), error])
    assert not higher_is_better("valid/error", metrics)
    assert higher_is_better("valid/si_sdr", metrics)
    assert not higher_is_better("valid/loss", metrics)
    sources = torch.randn(2, 2, 1, 100)
    estimates = sources.clone()
    estimates[0, 1, 0, 3] = torch.nan
    found = score(estimates, sources, sources.sum(1), False, metrics)
    assert found["error"].tolist() == [[0, math.inf], [0, 0]]
    assert found["si_sdr"][0, 1] == -math.inf


def test_a_function_that_is_not_a_metric_is_refused(call, tmp_path):
    from separate.cli import train
    from tests.conftest import TINY_TOY

    code, _, err = call(train, *TINY_TOY, "metrics=[separate.evaluation.sdr.snr]", cwd=tmp_path)
    assert code == 2
    assert "metrics=[separate.evaluation.sdr.snr] is not a metric; decorate the function with @metric(label" in err
    with pytest.raises(UsageError, match="the metric si_sdr has a reserved name or the name of another metric"):
        by_name([*METRICS.values(), METRICS["si_sdr"]])
    summed = metric(label="sum")(lambda estimates, references, mixture: estimates.sum())
    with pytest.raises(
        UsageError, match=r"gives the shape \(\); return one score for each example and source, \(2, 2\)"
    ):
        summed(torch.zeros(2, 2, 1, 9), torch.zeros(2, 2, 1, 9), torch.zeros(2, 1, 9))
