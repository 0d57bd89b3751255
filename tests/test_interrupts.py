"""Signals: native code survives them, and loader processes leave them to the training process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import separate.cli.infer
from separate import checkpoint
from separate.data.loader import TrainingSteps
from separate.errors import SeparateError
from separate.training import trainer
from separate.training.interruption import Interrupted, Interruption
from tests.conftest import RATE, TINY_TOY, write
from tests.test_trainer import start

STORM = """
import signal, sys
from importlib import import_module
signal.signal(signal.SIGALRM, lambda *_: None)
program, *arguments = sys.argv[1:]
main = import_module(f"separate.cli.{program}").main
for name, often in (("calm", 0), ("hit", 1e-3)):
    print(name)
    sys.argv[1:] = [argument.replace("NAME", name) for argument in arguments]
    signal.setitimer(signal.ITIMER_REAL, often, often)
    try:
        main()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
"""  # runs a program twice, undisturbed and with a thousand signals each second
RECURRENT = ["model=blstm", "model.units=100", "model.layers=2"]
ENCODER = ["model=tasnet", "loss=si_sdr", "model.filters=64", "model.layers=1", "model.units=32"]


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """The output of a program in its own process, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("model", [RECURRENT, ENCODER], ids=["blstm", "tasnet"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_training_under_constant_signals_learns_the_same(model, threads, tmp_path):
    options = [
        "data.tracks={train: 1, valid: 1, test: 1}", "data.excerpt=2", "batch_size=4", "trainer.epochs=1",
        "trainer.steps_per_epoch=6", "logger.tensorboard=false", "device=cpu", "trainer.precision=fp32",
    ]  # fmt: skip
    python(
        STORM, "train", *model, *options, "run=NAME", cwd=tmp_path, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE"
    )
    calm, hit = (checkpoint.read(tmp_path / run / "checkpoints" / "last.ckpt")["model"] for run in ("calm", "hit"))
    assert all(torch.equal(value, hit[name]) for name, value in calm.items())


MASKS = """
import os, re, sys, threading
from importlib import import_module
from pathlib import Path
import_module(f"separate.cli.{sys.argv.pop(1)}").main()
python = {str(thread.native_id) for thread in threading.enumerate()} - {str(os.getpid())}
for task in [task for task in Path("/proc/self/task").iterdir() if task.name not in python]:
    print("mask", task.name == str(os.getpid()), re.search("SigBlk:\\t(.+)", (task / "status").read_text())[1])
"""  # at the end of a program prints the signals blocked in its main thread, and in threads that are not Python's


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_go_to_the_main_thread_and_not_to_native_ones(tmp_path):
    write(tmp_path / "mix.wav", np.random.default_rng(0).normal(scale=0.1, size=(RATE, 1)))
    environment = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}  # NumPy's threads run no code of oneDNN
    for program, *arguments in (
        ["train", *TINY_TOY, "run=r"],
        ["infer", "-c", "r", "-o", "out", "--device", "cpu", "mix.wav"],
        ["evaluate", "run=r", "device=cpu"],
    ):
        said = python(MASKS, program, *arguments, cwd=tmp_path, **environment)
        found = [line.split()[1:] for line in said.splitlines() if line.startswith("mask ")]
        (main,) = (int(mask, 16) for name, mask in found if name == "True")
        native = [int(mask, 16) for name, mask in found if name == "False"]
        assert len(native) == 2, (program, found)  # one of OpenMP, and one that torch starts for XNNPACK
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            assert all(mask & 1 << number - 1 for mask in native), (program, number)
            assert not main & 1 << number - 1, (program, number)
        assert not any(mask & 1 << signal.SIGSEGV - 1 for mask in native)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_worker_that_is_stopped_while_it_starts_goes_on(tmp_path):
    early = """
        import os, signal
        from torch.utils.data import Dataset
        from separate.data.loader import load

        class Numbers(Dataset):
            def __getitem__(self, number): return number

        def stop():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)

        os.register_at_fork(after_in_child=stop)
        print(list(load(Numbers(), range(5), 1, False)), signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """
    assert python("if True:" + early, cwd=tmp_path) == "[0, 1, 2, 3, 4] set()\n"


def test_a_stop_signal_while_the_workers_end_stops_the_training(tmp_path, monkeypatch):
    """The system's default for SIGTERM would end the program without a message."""
    reached = []
    before = signal.signal(signal.SIGTERM, lambda *_: reached.append("handler of before"))

    def load(items, *arguments):
        try:
            yield from trainer_load(items, *arguments)
        finally:
            if isinstance(items, TrainingSteps):
                signal.raise_signal(signal.SIGTERM)

    trainer_load = trainer.load
    monkeypatch.setattr(trainer, "load", load)
    try:
        state, training = start(tmp_path, epochs=1)
        trainer.fit(state, training)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not reached


def test_the_saved_checkpoint_is_reported_before_the_workers_end(tmp_path, monkeypatch, caplog):
    ended = []

    def load(*arguments):
        try:
            yield from trainer_load(*arguments)
        finally:
            ended.append(caplog.text)

    trainer_load = trainer.load
    monkeypatch.setattr(trainer, "load", load)
    monkeypatch.setattr(Interruption, "check", interrupt)
    state, training = start(tmp_path, epochs=1)
    with caplog.at_level("INFO"), pytest.raises(SeparateError, match="interrupted in epoch 1 after step 1"):
        trainer.fit(state, training)
    assert "saved checkpoints/last.ckpt after step 1" in ended[-1]


def interrupt(self):
    self.reason = "interrupted"
    raise Interrupted


def test_a_program_restores_the_handler_of_sigterm(call, tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for arguments in (["nowhere.wav"], ["--help"], ["--chunk", "many", "x.wav"]):
            call(separate.cli.infer, *arguments, cwd=tmp_path)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
