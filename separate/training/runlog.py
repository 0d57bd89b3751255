"""The log of a run: metrics.jsonl, and TensorBoard scalars, spectrograms and audio."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.config import LoggerConfig
from separate.files import replace_file

if TYPE_CHECKING:
    from separate.data.example import Examples
    from separate.training.state import State

log = logging.getLogger(__name__)


class RunLog:
    """Writes to a run's folder.  epoch: the number of epochs done; entries of later epochs are dropped.

    trust: as in `instantiate.build`, for figures of other packages.
    """

    def __init__(self, folder: Path, options: LoggerConfig, epoch: int = 0, trust: Sequence[str] | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self.options = options
        step = 0  # the last one logged
        if self.path.exists():
            lines = [line for line in self.path.read_text("utf-8").splitlines() if _epoch_of(line) <= epoch]
            replace_file(self.path, "".join(f"{line}\n" for line in lines).encode())
            step = max((json.loads(line).get("step", 0) for line in lines), default=0)
        self.board: Any = None
        if options.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            from separate.figures import load_figures

            self.figures = load_figures(options.figures, trust)
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)  # drops steps after this one

    def epoch(self, facts: dict[str, float], improved: bool) -> None:
        """Write the metrics of an epoch: a line of metrics.jsonl, TensorBoard scalars, a summary on the terminal."""
        plain = {name: value if math.isfinite(value) else None for name, value in facts.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        if self.board:
            for name, value in facts.items():
                self.board.add_scalar(name, value, facts["step"])
            self.board.flush()
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
        """Spectrograms, masks and audio of the first validation examples and learned filters, every few epochs."""
        if not self.board or (state.epoch - 1) % self.options.every:
            return
        import torch

        from separate.data.mixing.raw_batch import collate
        from separate.evaluation.scores import arrange_separation
        from separate.figures import SeparatedExamples

        separator = state.separator.eval()
        separated = SeparatedExamples(separator, [], valid.sources)
        with torch.inference_mode():
            for index in range(min(self.options.examples, len(valid))):
                batch = collate([valid.fixed(index)]).to(separator.device, separator.stft)
                separation = separator.separate(batch)
                if separator.interchangeable:  # estimates in the order of the references
                    separation = arrange_separation(separation)
                separated.examples.append(separation)
            for draw in self.figures:
                for tag, figure in draw(separated):
                    self.board.add_figure(tag, figure, state.step)
        for index, separation in enumerate(separated.examples):
            estimates = separation.estimates[0].mean(dim=1).cpu()
            signals = {
                "mixture": separation.batch.mixture[0].mean(dim=0).cpu(),
                **dict(zip(valid.sources, estimates, strict=True)),
            }
            for name, audio in signals.items():
                self.board.add_audio(
                    f"example_{index}/{name}",
                    audio / audio.abs().max().clamp_min(1e-8),
                    state.step,
                    separator.sample_rate,
                )

    def close(self) -> None:
        if self.board:
            self.board.close()


def _epoch_of(line: str) -> float:
    """The epoch of a line of metrics; infinite for an incomplete line, after a kill or on a full disk."""
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:
        return math.inf
