"""result.json: the result of a run, written at its end."""

from __future__ import annotations

import json
from pathlib import Path

from separate.evaluation.metrics import higher_is_better
from separate.files import replace_file
from separate.training.state import State, Training

NAME = "result.json"


def remove_result(folder: Path) -> None:
    """Remove the result of an earlier end, because the run starts or goes on."""
    (folder / NAME).unlink(missing_ok=True)


def write_result(state: State, training: Training) -> None:
    """Write the best value of the monitored metric, its direction, and the length of the training."""
    monitor = training.options.monitor
    facts = {
        "monitor": monitor,
        "best": state.best,
        "higher_is_better": higher_is_better(monitor, training.metrics),
        "epochs": state.epoch,
        "steps": state.step,
        "minutes": state.seconds / 60,
    }
    replace_file(training.folder / NAME, json.dumps(facts, indent=1).encode())
