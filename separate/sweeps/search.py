"""Search for hyperparameters: ask Optuna for settings, train them with Hydra's launcher, tell Optuna the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from separate.errors import UsageError
from separate.sweeps.job import Record, done_value
from separate.sweeps.pruning import TRIAL, Search
from separate.validation import number, typed

log = logging.getLogger(__name__)


@dataclass
class SearchConfig:
    """The keys of conf/hydra/sweeper/optuna.yaml."""

    n_trials: int = number(20, least=1, most=10**6)
    n_jobs: int = number(1, least=1, most=10**4)
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = number(0, least=0, most=2**32 - 1)
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup: int = number(5, least=0, most=10**6)
    warmup: int = number(5, least=0, most=10**6, unit="epochs")
    storage: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


def search(options: Mapping[str, Any], config: DictConfig, launcher: Any, arguments: Sequence[str]) -> None:
    """Resume the stopped trials, then train new ones until the storage holds `n_trials`.

    options: of the sweeper; config: of the sweep, with Hydra's section; arguments: the overrides of the command.
    """
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
    asked = typed(SearchConfig, plain, "hydra.sweeper.")
    fixed, space = _split(asked.params, arguments)
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(asked, config, folder)
    plan.write(folder)
    study = _study(plan, asked)
    waiting = _stopped(study)
    done = len(study.trials) - len(waiting)
    while waiting or done < asked.n_trials:
        batch, waiting = waiting[: asked.n_jobs], waiting[asked.n_jobs :]
        room = min(asked.n_jobs, asked.n_trials - done) - len(batch)
        batch += [_ask(study, space, folder) for _ in range(room)]
        jobs = [[*fixed, *_overrides(trial)] for trial in batch]
        for trial, result in zip(batch, launcher.launch(jobs, initial_job_idx=batch[0].number), strict=True):
            _tell(study, trial, result)
        done += len(batch)


def _plan(asked: SearchConfig, config: DictConfig, folder: Path) -> Search:
    from separate.evaluation.metrics import higher_is_better, load_metrics

    metrics = load_metrics(OmegaConf.to_container(config.metrics))  # type: ignore[arg-type]
    return Search(
        storage=asked.storage or f"sqlite:///{folder}/optuna.db",
        direction="maximize" if higher_is_better(config.trainer.monitor, metrics) else "minimize",
        pruner=asked.pruner,
        startup=asked.startup,
        warmup=asked.warmup,
        epochs=config.trainer.epochs,
    )


def _study(plan: Search, asked: SearchConfig) -> Any:
    try:
        from optuna import samplers
    except ImportError:
        raise UsageError(
            "hydra/sweeper=optuna needs Optuna, which is not installed; run: pip install 'separate[sweep]'"
        ) from None
    before = len(plan.study().trials)  # a new seed, else the random trials of the first start repeat
    if asked.sampler == "random":
        return plan.study(samplers.RandomSampler(seed=asked.seed + before))
    return plan.study(samplers.TPESampler(seed=asked.seed + before, constant_liar=asked.n_jobs > 1))


def _ask(study: Any, space: dict[str, Any], folder: Path) -> Any:
    try:
        return study.ask(space)
    except ValueError as error:  # its choices differ from those of earlier trials
        raise UsageError(
            f"{folder} holds a search of other values ({error}); repeat its values, or choose another hydra.sweep.dir"
        ) from None


def _stopped(study: Any) -> list[Any]:
    """The trials that were running when the sweep ended.  Assumes that no other sweep uses the storage."""
    from optuna.trial import Trial, TrialState

    return [Trial(study, trial._trial_id) for trial in study.get_trials(states=[TrialState.RUNNING])]


def _split(params: Mapping[str, Any], arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides of all trials, and the distribution of each swept key; UsageError if no key is swept."""
    given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = {override.get_key_element(): override for override in OverridesParser.create().parse_overrides(given)}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in parsed.items() if not o.is_sweep_override()]
    space = {key: distribution(override) for key, override in parsed.items() if override.is_sweep_override()}
    if not space:
        raise UsageError("no key is searched; give one several values, as in 'optimizer.lr=interval(1e-4,1e-2)'")
    return fixed, space


def distribution(override: Override) -> Any:
    """Optuna's distribution of a sweep in Hydra's grammar: a,b; range(1,5); interval(0.1,1); tag(log, interval(0.1,1)).

    interval(1,5) is continuous; int(interval(1,5)) holds integers.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: Any = override.value()
    log_scale = "log" in getattr(values, "tags", ())
    if isinstance(values, IntervalSweep):
        whole = isinstance(values.start, int) and isinstance(values.end, int) and "int(" in str(override.input_line)
        kind: Any = IntDistribution if whole else FloatDistribution
        try:
            return kind(values.start, values.end, log=log_scale)
        except ValueError as error:
            raise UsageError(f"{override.input_line} is no interval to search ({error})") from None
    if isinstance(values, RangeSweep):
        return CategoricalDistribution([str(value) for value in values.range()])
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _overrides(trial: Any) -> list[str]:
    return [*(f"{key}={value}" for key, value in trial.params.items()), f"+hydra.job.env_set.{TRIAL}={trial.number}"]


def _tell(study: Any, trial: Any, result: Any) -> None:
    """Tell the study how a job ended, from the record in its folder."""
    from optuna.trial import TrialState

    folder = Path(str(result.hydra_cfg.hydra.runtime.output_dir))
    record = Record.read(folder)
    done, value = done_value(folder, record)
    if not done or value is None:
        study.tell(trial, state=TrialState.FAIL)
    elif record is not None and record.state == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
