"""The training loop: step, validate, stop early, keep the best."""

from __future__ import annotations

import logging
import math
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from separate import checkpoint
from separate.config import TrainerConfig
from separate.data.example import Examples
from separate.data.loader import FixedBatches, TrainingSteps, load
from separate.data.mixing.augmenter import Augmenter
from separate.data.mixing.raw_batch import RawBatch
from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import METRICS, Metric, higher_is_better
from separate.evaluation.scores import score
from separate.files import replace_file
from separate.losses import Loss
from separate.models.representation import observers
from separate.process import release
from separate.separator import Separator
from separate.training import deferred
from separate.training.runlog import RunLog
from separate.training.state import State

log = logging.getLogger(__name__)

MOST_SKIPPED = 5  # steps in a row with a non-finite loss or gradient before the run stops
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Interrupted(Exception):
    """The user wants to stop, and the state is whole."""


class Stopped(SeparateError):
    """Ctrl-C or SIGTERM: the state is saved, the message says how to go on."""

    exit_code = 130


@dataclass
class Training:
    """What does not change while training.  config: the resolved configuration, for the checkpoints.

    lags: the figures of a step are read during the next one, so that the host does not wait for a GPU.
    """

    loss: Loss
    train: Examples
    valid: Examples
    options: TrainerConfig
    batch_size: int
    seed: int
    workers: int | str
    folder: Path
    config: dict[str, Any]
    augment: Augmenter | None = None
    log: RunLog | None = None
    lags: bool = False
    dtype: torch.dtype = torch.float32
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)

    @property
    def steps_per_epoch(self) -> int:
        return self.options.steps_per_epoch or math.ceil(len(self.train) / self.batch_size)

    @property
    def steps(self) -> TrainingSteps:
        return TrainingSteps(self.train, self.batch_size, self.seed, self.augment)

    @property
    def examples(self) -> dict[str, int]:
        return {"train": len(self.train), "valid": len(self.valid)}

    @property
    def monitors(self) -> list[str]:
        """What `trainer.monitor` can name."""
        return ["valid/loss", *(f"valid/{metric}" for metric in self.metrics)]


def precision(name: str, separator: Separator) -> torch.dtype:
    """The dtype that training computes in.

    auto: bfloat16 on a CUDA device that has it, and on a CPU that has it if the network is `faster_in_bfloat16` there;
    else float32.
    """
    if name != "auto":
        return PRECISIONS[name]
    kind, faster = separator.device.type, False
    if kind == "cuda":
        faster = torch.cuda.is_bf16_supported()
    elif kind == "cpu" and getattr(separator.network, "faster_in_bfloat16", False):
        there = torch.cpu.get_capabilities()
        faster = bool(there.get("avx512_bf16") or there.get("amx_bf16"))
    return torch.bfloat16 if faster else torch.float32


def fit(state: State, training: Training) -> float | None:
    """Train to the end, from wherever the state stands; the best value of the monitored metric comes back."""
    options = training.options
    if options.monitor not in training.monitors:
        raise UsageError(f"trainer.monitor={options.monitor} is unknown; choose from {', '.join(training.monitors)}")
    if _finished(state, options):
        log.info("the run had ended already, after %d epochs; raise trainer.epochs to go on", state.epoch)
        return state.best
    steps = training.steps
    ahead = range(state.step, options.epochs * training.steps_per_epoch)
    pin = state.separator.device.type == "cuda"
    with _interruptible() as interruption, closing(load(steps, ahead, training.workers, pin)) as batches:
        try:
            while not _finished(state, options):
                means = train_epoch(state, training, batches, interruption)
                means.update(validate(state, training, interruption))
                end_epoch(state, training, means)
                release()
        except Interrupted:
            save(state, training, "last")
            log.info("saved checkpoints/last.ckpt after step %d", state.step)  # said before processes and threads end
            raise Stopped(
                f"interrupted in epoch {state.epoch + 1} after step {state.step}; everything is saved. Go on with\n"
                f"  {how_to_go_on(training.folder)}"
            ) from None
    return state.best


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run; its override is quoted for Hydra where the path needs it."""
    plain = re.fullmatch(r"[\w/.:+@%-]+", str(folder), re.ASCII)
    return f"separate-train run={folder} resume=true" if plain else f"separate-train 'run=\"{folder}\"' resume=true"


def _finished(state: State, options: TrainerConfig) -> bool:
    stopped_early = options.patience is not None and state.stale >= options.patience
    return state.epoch >= options.epochs or stopped_early or _out_of_time(state, options)


def _out_of_time(state: State, options: TrainerConfig) -> bool:
    return options.max_minutes is not None and state.seconds >= 60 * options.max_minutes


def train_epoch(
    state: State, training: Training, batches: Iterator[RawBatch], interruption: Interruption
) -> dict[str, float]:
    """The steps that are left of this epoch; means over the whole of it, by name."""
    options = training.options
    state.separator.train()
    end = (state.epoch + 1) * training.steps_per_epoch
    begun_at = state.step
    saved = started = time.perf_counter()
    waited = 0.0
    with tqdm(
        total=end - state.step, desc=f"epoch {state.epoch + 1}/{options.epochs}", leave=False, disable=None
    ) as bar:
        while state.step < end and not _out_of_time(state, options):
            begun = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begun
            if batch.rejected:
                state.sums["rejected"] = state.sums.get("rejected", 0.0) + batch.rejected
            _add(state.sums, train_step(state, training, batch))
            now = time.perf_counter()
            state.seconds += now - begun  # validation adds its own
            bar.set_postfix_str(_progress(state.sums, waited / (now - started)), refresh=False)
            bar.update()
            if now - saved > 60 * options.checkpoint_minutes:
                save(state, training, "last")
                saved = now
            interruption.check()
    _add(state.sums, flush(state, training))
    sums = dict(state.sums)
    steps, rejected = sums.pop("steps", 0.0), sums.pop("rejected", 0.0)
    means = {f"train/{name}": total / steps for name, total in sums.items()}
    if rejected:
        means["train/rejected"] = rejected / (rejected + steps * training.batch_size)  # share of the excerpts drawn
    if done := state.step - begun_at:
        elapsed = time.perf_counter() - started
        means["train/steps_per_second"] = done / elapsed
        means["train/waiting"] = waited / elapsed  # share of the time spent waiting for data
    return means


def _progress(sums: dict[str, float], waiting: float) -> str:
    mean = sums["loss"] / sums["steps"] if sums.get("steps") else math.nan
    return f"loss {mean:.4g}, waiting for data {waiting:.0%}"


def train_step(state: State, training: Training, drawn: RawBatch) -> dict[str, float]:
    """One step.  Returns what it adds to the epoch's sums; nothing where loss or gradient is not finite.

    Such a step is not applied: parameters, statistics and the optimizer's state stay as they were.

    On the CPU the figures of the step (loss, its parts, gradient norm) are read at once.  On other devices
    (`training.lags`) they are one tensor, whose copy to the host starts here.  The next step reads it with `flush` once
    its own forward and backward passes are queued, and returns what the earlier step adds.  The host waits for the
    device only there.  Whether a step is applied is decided on the device.  A fused Adam skips the step itself.  Of
    other optimizers the device keeps the new parameters or restores a copy of the old ones; their state is copied too,
    and restored once the figures have been read.
    """
    separator, optimizer, scaler = state.separator, state.optimizer, state.scaler
    device = separator.device
    dtype = training.dtype
    buffers = deferred.statistics(separator)
    buffers_before = deferred.copies(buffers)
    before: deferred.OptimizerState | None = None
    gained: dict[str, float] = {}
    try:
        batch = training.loss.prepare(drawn.to(device, separator.stft))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, parts = training.loss(separator.separate(batch), batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(separator.parameters(), training.options.clip or math.inf)
        figures = deferred.Figures({"loss": loss, "gradient_norm": norm, **parts})
        if training.lags:
            figures.send()
            gained = flush(state, training)  # it may put the optimizer's state back, and so comes before this update
            if deferred.skips_on_device(optimizer):
                deferred.step_if(figures.finite, optimizer)
            else:
                parameters = deferred.parameters(optimizer)
                before, parameters_before = deferred.OptimizerState(optimizer), deferred.copies(parameters)
                optimizer.step()
                deferred.undo_unless(figures.finite, parameters, parameters_before)
            deferred.undo_unless(figures.finite, buffers, buffers_before)
        elif figures.finite:
            optimizer.step()
        else:
            deferred.undo_unless(figures.finite, buffers, buffers_before)
            optimizer.zero_grad(set_to_none=True)
    except torch.OutOfMemoryError:
        seconds = training.train.frames / training.train.sample_rate
        raise SeparateError(
            f"out of memory on {device} at batch_size={training.batch_size} and data.excerpt={seconds:g}; "
            f"lower one of them"
        ) from None
    scaler.update()
    state.pending = deferred.Pending(state.step, drawn, figures, before)
    state.step += 1
    return gained if training.lags else flush(state, training)


def flush(state: State, training: Training) -> dict[str, float]:
    """Read the figures of the last step if it is pending, and return what it adds to the epoch's sums."""
    step, state.pending = state.pending, None
    if step is None:
        return {}
    found = step.figures.read()
    if all(map(math.isfinite, found.values())):
        state.skipped = 0
        return {"steps": 1, **found}
    if step.before is not None:
        step.before.restore(state.optimizer)
    if state.scaler.is_enabled() and math.isfinite(found["loss"]):  # float16 overflows are the scaler's to handle
        state.skipped = 0
    else:
        state.skipped += 1
        _report_non_finite(state, training, step, found)
    return {}


def _add(sums: dict[str, float], gained: dict[str, float]) -> None:
    for name, value in gained.items():
        sums[name] = sums.get(name, 0.0) + value


def _report_non_finite(state: State, training: Training, step: deferred.Pending, found: dict[str, float]) -> None:
    """Keep the batch for inspection, say so, and stop the run when it happens again and again."""
    batch = training.loss.prepare(step.drawn.to(state.separator.device, state.separator.stft))
    path = training.folder / "nonfinite" / f"step_{step.number}.pt"
    evidence = {"mixture": batch.mixture.cpu(), "sources": batch.sources.cpu(), "tracks": batch.tracks, **found}
    replace_file(path, checkpoint.to_bytes(evidence))
    what = (
        f"step {step.number} was not applied: loss {found['loss']:g}, gradient norm {found['gradient_norm']:g}, "
        f"tracks {', '.join(batch.tracks)}; the batch is in {path}"
    )
    log.warning(what)
    if state.skipped >= MOST_SKIPPED:
        raise SeparateError(
            f"{state.skipped} steps in a row were not finite and the run stops; the last: {what}. Lower optimizer.lr "
            f"or trainer.clip, or look at that batch; the checkpoints are from before"
        )


@torch.no_grad()
def measure(state: State, training: Training) -> None:
    """Show one epoch's batches to the parts of the network that begin with statistics of the training set."""
    parts = observers(state.separator.network)
    if not parts:
        return
    steps = range(training.steps_per_epoch)
    pin = state.separator.device.type == "cuda"
    with closing(load(training.steps, steps, training.workers, pin)) as batches:
        for drawn in tqdm(batches, "measuring the training set", len(steps), leave=False, disable=None):
            batch = training.loss.prepare(drawn.to(state.separator.device, state.separator.stft))
            spectrogram = state.separator.input_spectrogram(batch)
            for part in parts:
                part.observe(spectrogram)
    for part in parts:
        part.settle()


@torch.inference_mode()
def validate(state: State, training: Training, interruption: Interruption) -> dict[str, float]:
    """Loss and scores over the validation examples, in float32 on the path that evaluation and inference take."""
    separator, loss = state.separator.eval(), training.loss
    losses: list[Tensor] = []
    examples = 0
    scores: dict[str, list[Tensor]] = {name: [] for name in training.metrics}
    batches = FixedBatches(training.valid, training.batch_size)
    pin = separator.device.type == "cuda"
    begun = time.perf_counter()
    steps = min(len(batches), training.options.valid_steps or len(batches))
    with closing(load(batches, range(steps), training.workers, pin)) as stream:
        for drawn in tqdm(stream, "validating", steps, leave=False, disable=None):
            batch = drawn.to(separator.device, separator.stft)
            prepared = loss.prepare(batch)
            separation = separator.separate(prepared)
            losses.append(loss(separation, prepared)[0].double() * len(batch.mixture))
            if prepared is not batch:
                separation = separator.separate(batch)
            examples += len(batch.mixture)
            found = score(
                separation.estimates, batch.sources, batch.mixture, separator.interchangeable, training.metrics
            )
            for name, values in found.items():
                scores[name].append(values)
            interruption.check()
    state.seconds += time.perf_counter() - begun
    means = {name: torch.cat(values).nanmean().item() for name, values in scores.items()}
    return {
        "valid/loss": torch.stack(losses).sum().item() / examples,
        **{f"valid/{name}": value for name, value in means.items()},
    }


def end_epoch(state: State, training: Training, means: dict[str, float]) -> None:
    """Judge the epoch, adapt the learning rate, write it all down."""
    options = training.options
    value = means[options.monitor]
    upwards = higher_is_better(options.monitor, training.metrics)
    if not math.isfinite(value):
        log.warning("epoch %d: %s is %g; such an epoch is never the best", state.epoch + 1, options.monitor, value)
    gain = math.inf if state.best is None else (value - state.best) if upwards else (state.best - value)
    improved = math.isfinite(value) and gain > options.min_delta
    if improved:
        state.best, state.stale = value, 0
    else:
        state.stale += 1
    rate = state.optimizer.param_groups[0]["lr"]
    if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        state.scheduler.step(value if math.isfinite(value) else -math.inf if upwards else math.inf)
    elif state.scheduler is not None:
        state.scheduler.step()
    state.epoch += 1
    state.sums = {}
    facts = {"epoch": state.epoch, "step": state.step, "minutes": state.seconds / 60, "learning_rate": rate, **means}
    if training.log:
        training.log.epoch(facts, improved)
        training.log.pictures(state, training.valid)
    if improved:
        save(state, training, "best", means)
    save(state, training, "last", means)


def save(state: State, training: Training, name: str, scores: dict[str, float] | None = None) -> None:
    """Write RUN/checkpoints/NAME.ckpt, after reading the figures of the last step."""
    import separate

    _add(state.sums, flush(state, training))
    contents = {
        "config": training.config,
        "scores": scores or {},
        "examples": training.examples,
        "licence": training.config["data"]["licence"],
        "versions": {"separate": separate.__version__, "torch": str(torch.__version__)},
        **state.capture(),
    }
    checkpoint.save(training.folder / "checkpoints" / f"{name}.ckpt", contents)


class Interruption:
    """Set by the first Ctrl-C or SIGTERM, and heeded where the state is whole; the second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("stopping after this step (once more: at once, and since the last checkpoint all is lost)")

    def check(self) -> None:
        """To be called where the state is whole."""
        if self.asked:
            raise Interrupted


@contextmanager
def _interruptible() -> Iterator[Interruption]:
    interruption = Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
