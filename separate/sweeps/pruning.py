"""Pruning: a trial of a search reports each epoch to Optuna, and stops if other trials were better.

The sweeper writes SWEEP/search.json and passes the number of the trial in the environment, with any launcher.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.errors import SeparateError
from separate.files import replace_file

if TYPE_CHECKING:
    from separate.training.state import State

TRIAL = "SEPARATE_TRIAL"  # environment variable: the number of this job's trial
RECORD = "search.json"


class Pruned(SeparateError):
    """A trial was stopped because others were better after as many epochs.  best: its best value."""

    def __init__(self, message: str, best: float | None):
        super().__init__(message)
        self.best = best


@dataclass(frozen=True)
class Search:
    """The description of a study, for each trial to open it.  storage: a URL; direction: minimize or maximize.

    startup: number of first trials that the median pruner never stops; warmup: epochs of a trial without pruning;
    epochs: of the longest trial.
    """

    storage: str
    direction: str
    pruner: str = "median"
    startup: int = 5
    warmup: int = 5
    epochs: int = 100

    def write(self, folder: Path) -> None:
        replace_file(folder / RECORD, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, folder: Path) -> Search:
        return cls(**json.loads((folder / RECORD).read_text("utf-8")))

    def study(self, sampler: Any = None) -> Any:
        """The study, created on first use."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            study_name="separate",
            storage=self.storage,
            direction=self.direction,  # type: ignore[arg-type]
            load_if_exists=True,
            sampler=sampler,
            pruner=self._pruner(),
        )

    def _pruner(self) -> Any:
        from optuna import pruners

        if self.pruner == "none":
            return pruners.NopPruner()
        if self.pruner == "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, self.warmup), max_resource=self.epochs)
        return pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)


def watcher(sweep: Path) -> Callable[[State, float], None] | None:
    """The function to call after each epoch with the state and the monitored value; None outside a search.

    It raises `Pruned` if the trial should stop.  sweep: the folder of the sweep.
    """
    number = os.environ.get(TRIAL)
    if number is None:
        return None
    from optuna.trial import Trial

    study = Search.read(sweep).study()
    trial = Trial(study, study.trials[int(number)]._trial_id)

    def watch(state: State, value: float) -> None:
        trial.report(value if math.isfinite(value) else math.nan, state.epoch)
        if trial.should_prune():
            raise Pruned(f"pruned after epoch {state.epoch}: other trials were better after as many epochs", state.best)

    return watch
