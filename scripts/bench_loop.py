"""Loop overhead of `separate-train`, and the share of the matrix peak that a BLSTM step reaches.

Used by `bench_training.py --loop` and `--peak`.  While the bare loop runs, the worker of the other one fills its queue
of 4 batches; take many more steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench_common import in_turns, seconds

LOOPS = {
    "blstm": (["model=blstm", "model.layers=4", "loss=si_sdr"], 16),
    "conv_tasnet": (["model=conv_tasnet"], 2),
    "unet": (["model=unet"], 4),
}
GOAL = 0.95  # steps/s of the loop of separate-train over those of the bare loop
FRAMES, BINS, UNITS, LAYERS, BATCH = 400, 129, 300, 4, 16  # of the step of `peak`
HOP, RATE = 128, 8000


def configuration(root: Path, run: Path, overrides: list[str], arguments: argparse.Namespace) -> Any:
    from hydra import compose, initialize_config_module

    from separate.compose import from_hydra
    from separate.config import TrainConfig

    data = ["data=pools", f"data.root={root}", f"data.sample_rate={RATE}"]
    process = [f"run={run}", f"trainer.threads={arguments.threads[0]}", "data.workers=1", f"device={arguments.device}"]
    length = [f"trainer.steps_per_epoch={arguments.steps}", f"logger.steps={min(50, arguments.steps)}"]
    with initialize_config_module("separate.conf", version_base="1.3"):
        return asdict(from_hydra(compose("train", [*data, *process, *length, *overrides]), TrainConfig))


def bare_step(state: Any, training: Any, signals: Any) -> None:
    """The arithmetic of a training step: forward, loss, backward, clipping, update."""
    from torch.nn.utils import clip_grad_norm_

    from separate.data.batch import Batch

    separator = state.separator
    mixture, sources = signals
    batch = training.loss.prepare(Batch(mixture, sources, stft=separator.stft, additive=True))
    state.optimizer.zero_grad(set_to_none=True)
    with training.precision.float32_products():
        with training.precision.autocast(separator.device):
            loss, _ = training.loss(separator.separate(batch), batch)
        loss.backward()
        clip_grad_norm_(separator.parameters(), training.options.clip)
        state.optimizer.step()


def bare_loop(state: Any, training: Any, signals: Any) -> None:
    state.separator.train()
    for _ in range(training.steps_per_epoch):
        bare_step(state, training, signals)
    wait(training, state)


def real_loop(state: Any, training: Any, batches: Iterator[Any], interruption: Any) -> float:
    """An epoch of `separate-train` up to its validation.  Returns the share of time spent waiting for data."""
    from separate.training.trainer import train_epoch

    means = train_epoch(state, training, batches, interruption)
    wait(training, state)
    state.epoch, state.sums, training.log.before = state.epoch + 1, {}, {}
    return means["train/waiting"]


def wait(training: Any, state: Any) -> None:
    import torch

    if state.separator.device.type == "cuda":
        torch.cuda.synchronize()


def first_batch(state: Any, training: Any) -> Any:
    """On the device of the training."""
    return training.steps[0].to(state.separator.device, state.separator.stft)


@contextmanager
def prepared(case: str, root: Path, run: Path, arguments: argparse.Namespace) -> Iterator[tuple[Any, Any, Any]]:
    """State, training with its log, and signals of a batch on the device: mixture and sources."""
    from separate.config import LoggerConfig
    from separate.process import settle
    from separate.training.runlog import RunLog
    from separate.training.setup import prepare
    from separate.validation import typed

    overrides, batch_size = LOOPS[case]
    sizes = [f"batch_size={batch_size}", "data.excerpt=3"]
    config = configuration(root, run, [*sizes, *overrides, *arguments.overrides], arguments)
    settle(arguments.threads[0])
    state, training = prepare(config, run)
    training.log = RunLog(run, typed(LoggerConfig, config["logger"], "logger."), config=training.config)
    ready = first_batch(state, training)
    with closing(training.log):
        yield state, training, (ready.mixture, ready.sources)


def loop(case: str, root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median steps/s of both loops over the rounds, their ratio, and the share of time spent waiting for data."""
    from separate.data.loader import load
    from separate.training.interruption import interruptible

    run = root.parent / f"run_{case}"
    with (
        prepared(case, root, run, arguments) as (state, training, signals),
        interruptible() as interruption,
        closing(load(training.steps, range(10**6), 1, pin=arguments.device == "cuda")) as batches,
    ):
        waits: list[float] = []
        real: Callable[[], None] = lambda: waits.append(real_loop(state, training, batches, interruption))  # noqa: E731
        bare = partial(bare_loop, state, training, signals)
        turns = {"loop": partial(seconds, real), "bare": partial(seconds, bare)}
        in_turns(turns, 1)  # warm-up
        taken = in_turns(turns, arguments.rounds)
    rates = {name: training.steps_per_epoch / median(of) for name, of in taken.items()}
    return {**rates, "ratio": rates["loop"] / rates["bare"], "waiting": median(waits[1:])}


def show_loop(case: str, found: dict[str, float]) -> None:
    verdict = "reached" if found["ratio"] >= GOAL else "missed"
    print(
        f"{case}: separate-train {found['loop']:.3g} steps/s, bare loop {found['bare']:.3g} steps/s, "
        f"ratio {found['ratio']:.3f} (goal {GOAL}: {verdict}), waiting for data {found['waiting']:.1%}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------------------------------- peak


def blstm_flops(batch: int, frames: int, bins: int, units: int, layers: int, sources: int = 2) -> float:
    """Multiplications and additions of the matrix products of a training step.

    Forward pass, gradient of the weights, gradient of the inputs, except for that of the first layer.
    """
    first = 2 * 2 * 4 * units * bins  # two directions, four gates, from the input
    others = 2 * 2 * 4 * units * (units * layers + 2 * units * (layers - 1))  # recurrent, from the layer below
    head = 2 * 2 * units * bins * sources
    return float(batch * frames * (2 * first + 3 * (others + head)))


def matrix_peak(dtype: Any, device: str, rounds: int, size: int = 2048) -> float:
    """GFLOP/s of a product of two square matrices, the best of the rounds."""
    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    product()
    return 2e-9 * size**3 / min(seconds(product) for _ in range(rounds))


def peak(root: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """GFLOP/s of a BLSTM step and of a matrix product, and their ratio, for float32 and bfloat16."""
    import torch

    from separate.process import settle
    from separate.training.precision import PRECISIONS
    from separate.training.setup import prepare

    excerpt = (FRAMES - 1) * HOP / RATE
    network = ["model=blstm", f"model.layers={LAYERS}", f"model.units={UNITS}", "stft=speech", f"batch_size={BATCH}"]
    overrides = [*network, f"data.excerpt={excerpt}", *arguments.overrides]
    settle(arguments.threads[0])
    state, training = prepare(configuration(root, root.parent / "run_peak", overrides, arguments), root.parent)
    ready = first_batch(state, training)
    shape = (len(ready), *ready.spectrogram.shape[-2:])
    recurrent = training.config["model"]
    flops = blstm_flops(shape[0], shape[2], shape[1], recurrent["units"], recurrent["layers"])
    training = replace(training, options=replace(training.options, steps_per_epoch=1))
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        training.precision = PRECISIONS[name]
        step = partial(bare_loop, state, training, (ready.mixture, ready.sources))
        step()
        taken = median(seconds(step) for _ in range(arguments.rounds))
        best = matrix_peak(dtype, arguments.device, arguments.rounds)
        achieved = 1e-9 * flops / taken
        found[name] = {"seconds": taken, "gflops": achieved, "peak": best, "share": achieved / best}
        print(
            f"BLSTM {recurrent['layers']} x {recurrent['units']}, {shape[0]} x {shape[2]} frames x {shape[1]} bins, "
            f"{name}: {taken:.3g} s, {achieved:.4g} GFLOP/s, {achieved / best:.0%} of a matrix product's {best:.4g}",
            flush=True,
        )
    return found
