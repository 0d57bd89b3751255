"""Sweeps: failed, finished and stopped jobs, launchers, the search, the table and the picture."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from separate import checkpoint
from separate.cli import train
from separate.errors import UsageError
from separate.sweeps.hook import SweepHook
from separate.sweeps.identity import job_hash
from separate.sweeps.job import Record
from separate.sweeps.pruning import Search
from separate.sweeps.report import rows, table
from separate.sweeps.results import Job, read, settings, swept_keys
from tests.conftest import TINY_TOY

SWEEP = ["-m", "hydra.sweep.dir=sweep", *TINY_TOY]


def states(folder: Path) -> dict[str, str]:
    """{swept values: state} of the jobs."""
    jobs = read(folder)
    keys = swept_keys(jobs)
    return {" ".join(job.overrides.get(key, "") for key in keys): job.state for job in jobs}


def written(folder: Path) -> dict[str, int]:
    """The times at which the checkpoints were written."""
    return {path.parents[1].name: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/last.ckpt")}


def test_a_failed_job_is_recorded_the_others_go_on_and_only_it_is_trained_again(call, tmp_path):
    code, out, err = call(train, *SWEEP, "batch_size=1,100000,2", cwd=tmp_path)
    sentence = "batch_size=100000 must be at least 1 and at most 65536"
    assert code == 2 and "1 of 3 jobs failed" in err and sentence in err and "Traceback" not in err
    assert states(tmp_path / "sweep") == {"1": "finished", "100000": "failed", "2": "finished"}
    (failed,) = [job for job in read(tmp_path / "sweep") if job.state == "failed"]
    assert sentence in failed.reason and failed.exit_code == 2
    assert out.splitlines()[-1] == "sweep: sweep"

    before = written(tmp_path / "sweep")
    code, out, err = call(train, *SWEEP, "batch_size=2,3,1", cwd=tmp_path)  # another grid, in another order
    after = written(tmp_path / "sweep")
    assert {name: after[name] for name in before} == before and len(after) == 3
    assert out.count("was done before") == 2
    assert states(tmp_path / "sweep") == {"1": "finished", "100000": "failed", "2": "finished", "3": "finished"}


def test_a_stopped_job_goes_on_and_ends_as_if_it_was_never_stopped(tmp_path, call):
    long = [*SWEEP, "trainer.epochs=3", "trainer.steps_per_epoch=40", "seed=3,4", "data.workers=0"]
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "separate-train"), *long],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1 " in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert f"repeat the command with hydra.sweep.dir={tmp_path / 'sweep'} to go on" in rest
    (stopped,) = read(tmp_path / "sweep")
    assert stopped.state == "stopped" and stopped.reason == "1 of 3 epochs were done"
    code, out, err = call(train, *long, cwd=tmp_path)
    assert code == 0, err
    assert out.count("going on in") == 1
    call(train, *long[2:-2], "run=whole", "seed=3", "data.workers=0", cwd=tmp_path)
    weights = [
        checkpoint.read(folder / "checkpoints" / "last.ckpt")["model"]
        for folder in (stopped.folder, tmp_path / "whole")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_job_that_another_process_trains_is_left_to_it(call, tmp_path):
    from filelock import FileLock

    call(train, *SWEEP, "batch_size=1,2", cwd=tmp_path)
    job, _ = read(tmp_path / "sweep")
    (job.folder / "result.json").unlink()
    with FileLock(str(job.folder / "job.lock")):
        assert read(tmp_path / "sweep")[0].state == "running"
        before = written(tmp_path / "sweep")
        _, out, _ = call(train, *SWEEP, "batch_size=1,2", cwd=tmp_path)
        assert "is being trained by another process" in out
    assert written(tmp_path / "sweep") == before
    assert read(tmp_path / "sweep")[0].state == "stopped"


def test_a_folder_that_holds_another_job_is_refused(call, tmp_path):
    numbered = [*SWEEP, "hydra.sweep.subdir=job"]
    call(train, *numbered, "batch_size=1", cwd=tmp_path)
    _, _, err = call(train, *numbered, "batch_size=2", cwd=tmp_path)
    assert "sweep/job holds a job with another configuration; choose another hydra.sweep.dir" in err
    assert read(tmp_path / "sweep")[0].overrides["batch_size"] == "1"


def test_the_identity_of_a_job_is_what_it_trains():
    config = {"run": "a", "data": {"root": "x", "workers": 1}, "lr": 1e-3, "hydra": {"n": "${nothing}"}}

    def identity(**changes):
        return job_hash(OmegaConf.merge(OmegaConf.create(config), changes))

    assert identity() == identity(run="b", data={"workers": 2}, hydra={"n": 3}) == identity(lr=0.001)
    assert identity() == identity(resume="auto")
    assert len({identity(), identity(lr=2e-3), identity(data={"root": "y"}), identity(resume="runs/first")}) == 4


def test_a_key_that_changes_no_result_cannot_be_swept(call, tmp_path):
    code, _, err = call(train, *SWEEP, "trainer.threads=1,2", cwd=tmp_path)
    assert code == 2 and "trainer.threads does not change what is trained" in err
    assert not (tmp_path / "sweep").exists()


def test_a_single_run_prints_no_table_and_loads_neither_sweeps_nor_optuna(tmp_path):
    code = (
        "import sys; sys.argv[0] = 'separate-train'; from separate.cli.train import main; main();"
        "print([name for name in sys.modules if name in ('optuna', 'submitit', 'separate.sweeps.report', "
        "'separate.sweeps.job', 'separate.sweeps.identity', 'matplotlib.figure')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY_TOY, "run=r"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == [f"run: {tmp_path / 'r'}", "[]"]
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text())
    assert result["best"] == line["valid/loss"] and result["epochs"] == 1 and not result["higher_is_better"]


# ------------------------------------------------------------------------------------------------------------ launchers


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_of_processes_trains_records_and_skips(launcher, tmp_path, program):
    grid = [*SWEEP, f"hydra/launcher={launcher}", "batch_size=1,100000,2"]
    grid += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    done = program("separate-train", *grid, cwd=tmp_path)
    assert done.returncode == 2 and "1 of 3 jobs failed" in done.stderr, done.stderr
    assert states(tmp_path / "sweep") == {"1": "finished", "100000": "failed", "2": "finished"}
    before = written(tmp_path / "sweep")
    again = [word for word in grid if not word.startswith("hydra")] + ["hydra.sweep.dir=sweep"]
    assert program("separate-train", *again, cwd=tmp_path).returncode == 2
    assert written(tmp_path / "sweep") == before


# --------------------------------------------------------------------------------------------------------------- search

SEARCH = [*SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.startup=1", "hydra.sweeper.warmup=1", "trainer.epochs=4"]


def test_a_search_prunes_hopeless_trials_and_goes_on_where_it_stopped(call, tmp_path):
    import optuna

    space = ["optimizer.lr=1e-9,1e-1", "hydra.sweeper.sampler=random"]
    code, _, err = call(train, *SEARCH, *space, "hydra.sweeper.n_trials=3", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(train, *SEARCH, *space, "hydra.sweeper.n_trials=6", cwd=tmp_path)
    assert code == 0, err
    study = optuna.load_study(study_name="separate", storage=f"sqlite:///{tmp_path}/sweep/optuna.db")
    assert len(study.trials) == 6
    found = {(trial.params["optimizer.lr"], trial.state.name) for trial in study.trials}
    assert {rate for rate, _ in found} == {"1e-09", "0.1"}
    assert study.best_params == {"optimizer.lr": "0.1"}
    jobs = {float(job.overrides["optimizer.lr"]): job for job in read(tmp_path / "sweep")}
    assert jobs[0.1].state == "finished" and study.best_value == jobs[0.1].value


def test_a_trial_that_is_worse_than_the_median_stops_early(call, tmp_path):
    space = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "hydra.sweeper.n_trials=6"]
    code, out, err = call(train, *SEARCH, *space, cwd=tmp_path)
    assert code == 0, err
    pruned = [job for job in read(tmp_path / "sweep") if job.state == "pruned"]
    finished = [job for job in read(tmp_path / "sweep") if job.state == "finished"]
    assert pruned and len(pruned) + len(finished) == 6
    assert all(job.epochs < 4 and "pruned after epoch" in job.reason for job in pruned)
    assert all(job.epochs == 4 for job in finished)
    assert min(job.value for job in finished) < min(job.value for job in pruned)
    assert f"pruned {pruned[0].folder.name}" in out

    before = written(tmp_path / "sweep")
    code, _, err = call(train, *SEARCH, *space, cwd=tmp_path)  # all trials were done
    assert code == 0 and written(tmp_path / "sweep") == before, err


def test_other_choices_in_the_folder_of_a_search_are_refused(call, tmp_path):
    call(train, *SEARCH, "seed=1,2", "hydra.sweeper.n_trials=1", cwd=tmp_path)
    code, _, err = call(train, *SEARCH, "seed=1,2,3", "hydra.sweeper.n_trials=2", cwd=tmp_path)
    assert code == 2 and "holds a search of other values" in err


def test_the_values_of_a_search_are_those_of_hydras_grammar():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from separate.sweeps.search import distribution

    def of(text):
        return distribution(OverridesParser.create().parse_override(text))

    assert of("a=interval(0.1,1)") == FloatDistribution(0.1, 1.0)
    assert of("a=tag(log,interval(1e-4,1e-2))") == FloatDistribution(1e-4, 1e-2, log=True)
    assert of("a=int(interval(1,5))") == IntDistribution(1, 5)
    assert of("a=x,y") == CategoricalDistribution(["x", "y"])
    assert of("a=range(1,4)") == CategoricalDistribution(["1", "2", "3"])
    with pytest.raises(UsageError, match="is no interval to search"):
        of("a=tag(log,interval(0,1))")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["hydra.sweeper.n_trials=0", "seed=1,2"], "hydra.sweeper.n_trials=0 must be at least 1"),
    (["hydra.sweeper.pruner=medain", "seed=1,2"], "did you mean median?"),
    (["+hydra.sweeper.trials=3", "seed=1,2"], "there is no key hydra.sweeper.trials"),
    ([], "no key is searched; give one several values"),
])  # fmt: skip
def test_a_search_that_cannot_be_made_is_refused_in_a_sentence(arguments, sentence, call, tmp_path):
    code, _, err = call(train, *SEARCH, *arguments, cwd=tmp_path)
    assert code == 2 and sentence in err


# ------------------------------------------------------------------------------------------------- table and picture


def job(value, state="finished", upwards=False, **overrides):
    texts = {key.replace("_", "."): str(text) for key, text in overrides.items()}
    folder = Path("sweep") / "-".join([state, *texts.values()])
    return Job(folder, texts, state, "the reason" * (state == "failed"), 1, value, 3, 1.5, "valid/loss", upwards)


def test_the_table_has_mean_and_deviation_over_the_seeds_and_the_best_first():
    jobs = [
        job(1.0, lr=0.1, seed=0),
        job(3.0, lr=0.1, seed=1),
        job(1.5, lr=0.2, seed=0),
        job(None, "failed", lr=0.3, seed=0),
    ]
    lines = table(settings(jobs), jobs).splitlines()
    assert lines[0] == "4 jobs: 3 finished, 1 failed"
    assert lines[1].split("  ")[0] == "valid/loss (lower is better)"
    assert [line.split() for line in lines[2:4]] == [
        ["1.5", "1", "3", "1.5", "0.2"], ["2", "±", "1.4", "2", "3", "3.0", "0.1"],
    ]  # fmt: skip
    assert lines[4] == "failed failed-0.3-0 (lr=0.3 seed=0): the reason"
    assert len(lines) == 5


@pytest.mark.parametrize("upwards", [False, True])
def test_rows_are_sorted_in_the_direction_of_the_monitored_metric(upwards):
    jobs = [job(value, upwards=upwards, lr=value) for value in (2.0, 1.0, 3.0)] + [job(None, "failed", lr=5)]
    best_first = ["3.0", "2.0", "1.0"] if upwards else ["1.0", "2.0", "3.0"]
    assert [row["lr"] for row in csv.DictReader(rows(jobs).splitlines())] == [*best_first, "5"]
    assert [setting.values["lr"] for setting in settings(jobs)] == [*best_first, "5"]


def test_a_sweep_that_monitors_a_score_is_sorted_by_it(call, tmp_path):
    code, out, err = call(train, *SWEEP, "trainer.monitor=valid/si_sdr", "optimizer.lr=1e-9,1e-1,1e-2", cwd=tmp_path)
    assert code == 0, err
    values = [float(row["valid/si_sdr"]) for row in csv.DictReader((tmp_path / "sweep" / "sweep.csv").open())]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    assert "valid/si_sdr (higher is better)" in out
    assert (tmp_path / "sweep" / "sweep.txt").read_text() in out
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 5000


def test_the_picture_has_a_panel_for_each_swept_key(tmp_path, monkeypatch):
    from separate.sweeps.figure import picture

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    jobs = [
        job(len(loss) + rate + seed / 10 + size, optimizer_lr=rate, loss=loss, units=size, seed=seed)
        for rate in (1e-4, 1e-3, 1e-2) for loss in ("psa", "tpsa") for size in (5, 6) for seed in (0, 1)
    ]  # fmt: skip
    picture(settings(jobs), "valid/loss", False, tmp_path / "picture.png")
    axes = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in axes] == ["optimizer.lr", "loss", "units"]
    assert [axis.get_xscale() for axis in axes] == ["log", "linear", "linear"]
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["psa", "tpsa"]
    assert len(axes[0].containers) == 12  # error bars over the seeds
    assert axes[0].get_ylabel() == "valid/loss (lower is better)"


def test_jobs_that_are_stopped_are_told_from_those_that_run(tmp_path):
    assert read(tmp_path) == []
    started = time.time()
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"identity": "x", "overrides": {"a": "1"}}))
    (found,) = read(tmp_path)
    assert found.state == "stopped" and found.reason == "no epoch was done"
    assert time.time() - started < 5


def test_the_legend_of_a_score_ignores_the_monitored_metric(tmp_path, monkeypatch):
    from separate.sweeps.figure import picture

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    jobs = [job(100.0, lr=0.1), job(200.0, lr=0.2)]
    for one, score in zip(jobs, (1.0, 2.0), strict=True):
        one.scores = {"si_sdri": score}
    picture(settings(jobs, "si_sdri", True), "SI-SDRi, dB", True, tmp_path / "picture.png", "si_sdri")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["best setting", "setting", "best at each value"]


def test_a_failed_trial_of_a_search_is_not_said_to_be_repeated(tmp_path, capsys):
    folder = tmp_path / "job"
    folder.mkdir()
    Record("x", {"optimizer.lr": "1"}, "failed", "the reason", 3).write(folder)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    for expected in ("which trains only these", "a larger hydra.sweeper.n_trials"):
        with pytest.raises(SystemExit) as end:
            SweepHook().on_multirun_end(config)
        assert end.value.code == 3 and expected in capsys.readouterr().err
        Search("sqlite://", "minimize").write(tmp_path)
