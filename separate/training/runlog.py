"""The log of a run: metrics.jsonl, the terminal, and scalars, figures and audio for its loggers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.config import LoggerConfig, flatten
from separate.files import replace_file
from separate.training.loggers import open_loggers

if TYPE_CHECKING:
    from separate.data.example import Examples
    from separate.figures import FigureFunction, SeparatedExamples
    from separate.training.state import State

log = logging.getLogger(__name__)

COUNTS = ("steps", "rejected", "skipped")  # sums of an epoch that are not metrics of its steps


class RunLog:
    """Writes to a run's folder and to the loggers chosen in `options`.

    config: the resolved configuration, None to log none.  epoch, step: the numbers done; later entries of an earlier
    start are dropped, because the run repeats them.  trust: as in `instantiate.build`, for figures of other packages.
    """

    def __init__(
        self,
        folder: Path,
        options: LoggerConfig,
        epoch: int = 0,
        step: int = 0,
        config: Mapping[str, Any] | None = None,
        trust: Sequence[str] | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.options = options
        self.config = flatten(config or {})
        self.before: dict[str, float] = {}  # the sums of the epoch at the last logged step
        logged = 0
        if self.path.exists():
            lines = [line for line in self.path.read_text("utf-8").splitlines() if _epoch_of(line) <= epoch]
            replace_file(self.path, "".join(f"{line}\n" for line in lines).encode())
            logged = max((json.loads(line).get("step", 0) for line in lines), default=0)
        self.loggers = open_loggers(folder, options, self.config, max(step, logged + 1))
        self.figures: list[FigureFunction] = []
        if self.loggers:
            from separate.figures import load_figures

            self.figures = load_figures(options.figures, trust)

    def steps(self, state: State) -> None:
        """Log the means over the last `logger.steps` steps of the epoch."""
        if not self.loggers or state.step % self.options.steps:
            return
        gained = {name: total - self.before.get(name, 0.0) for name, total in state.sums.items()}
        self.before = dict(state.sums)
        steps = gained.pop("steps", 0.0)
        means = {f"step/{name}": total / steps for name, total in gained.items() if name not in COUNTS and steps}
        means["step/learning_rate"] = state.optimizer.param_groups[0]["lr"]
        for logger in self.loggers:
            logger.scalars(means, state.step)

    def epoch(self, facts: Mapping[str, float], improved: bool) -> None:
        """Write the metrics of an epoch: a line of metrics.jsonl, the loggers, a summary on the terminal."""
        self.before = {}
        plain = {name: value if math.isfinite(value) else None for name, value in facts.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        for logger in self.loggers:
            logger.scalars(facts, int(facts["step"]))
        log.info(
            "epoch %d  train loss %.4g  valid loss %.4g  SI-SDR %.2f dB  improvement %.2f dB%s  "
            "(%.1f min, %.2f steps/s, %.0f %% waiting for data)",
            facts["epoch"],
            facts.get("train/loss", math.nan),
            facts["valid/loss"],
            facts["valid/si_sdr"],
            facts["valid/si_sdri"],
            "  best" if improved else "",
            facts["minutes"],
            facts.get("train/steps_per_second", math.nan),
            100 * facts.get("train/waiting", math.nan),
        )

    def pictures(self, state: State, valid: Examples) -> None:
        """Log figures and audio of the first validation examples, and learned filters, every `logger.every` epochs."""
        if not self.loggers or (state.epoch - 1) % self.options.every:
            return
        separated = _separate(state, valid, self.options.examples)
        for draw in self.figures:
            for tag, figure in draw(separated):
                for logger in self.loggers:
                    logger.figure(tag, figure, state.step)
        for index, separation in enumerate(separated.examples):
            signals = {"mixture": separation.batch.mixture[0]}
            for name, estimate, reference in zip(
                valid.sources, separation.estimates[0], separation.batch.sources[0], strict=True
            ):
                signals |= {name: estimate, f"{name}_reference": reference}
            peak = (
                max(float(signal.abs().max()) for signal in signals.values()) or 1.0
            )  # one gain for all, so that their levels compare
            for name, signal in signals.items():
                for logger in self.loggers:
                    samples = signal.mean(dim=0).cpu() / peak
                    logger.audio(f"example_{index}/{name}", samples, state.separator.sample_rate, state.step)

    def end(self, scores: Mapping[str, float], step: int) -> None:
        """Log the options and the final scores of the run.  step: the number of training steps done."""
        for logger in self.loggers:
            logger.hparams(self.config, scores, step)

    def close(self, complete: bool = True) -> None:
        for logger in self.loggers:
            logger.close(complete)


def _separate(state: State, valid: Examples, count: int) -> SeparatedExamples:
    """The separations of the first validation examples, estimates in the order of the references."""
    import torch

    from separate.data.mixing.raw_batch import collate
    from separate.evaluation.scores import arrange_separation
    from separate.figures import SeparatedExamples

    separator = state.separator.eval()
    separated = SeparatedExamples(separator, [], valid.sources)
    with torch.inference_mode():
        for index in range(min(count, len(valid))):
            batch = collate([valid.fixed(index)]).to(separator.device, separator.stft)
            separation = separator.separate(batch)
            separated.examples.append(arrange_separation(separation) if separator.interchangeable else separation)
    return separated


def _epoch_of(line: str) -> float:
    """The epoch of a line of metrics; infinite for an incomplete line, as left by a kill or a full disk."""
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:
        return math.inf
