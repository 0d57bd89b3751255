"""Stops by signals and time limits, and their exit codes."""

import re
import signal

import pytest

from separate import checkpoint
from separate.cli import train
from separate.training import interruption
from separate.training.interruption import Interrupted, Interruption, Stopped, interruptible
from separate.training.trainer import fit
from tests.test_pipeline import LONGER, wait_for
from tests.test_pipeline import start as start_program
from tests.test_trainer import start


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_saves_its_state_and_asks_to_be_started_again(tmp_path, call, number):
    process = start_program(tmp_path, *LONGER, "hydra.run.dir=r", "resume=auto")
    last = tmp_path / "r" / "checkpoints" / "last.ckpt"
    wait_for(last, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert re.search(rf"stopped by {number.name} in epoch \d after step \d+; the state is saved", err), err
    assert "Traceback" not in err
    stopped = checkpoint.read(last)["training"]["step"]
    assert 0 < stopped < 90
    code, out, err = call(train, *LONGER, "hydra.run.dir=r", "resume=auto", cwd=tmp_path)
    assert code == 0, err
    assert f"step {stopped}" in out
    assert checkpoint.read(last)["training"]["step"] == 90


def test_a_run_stops_after_max_hours_of_the_program(tmp_path, monkeypatch):
    state, training = start(tmp_path, epochs=50, max_hours=2.0)
    monkeypatch.setattr(interruption, "STARTED", interruption.STARTED - 2 * 3600)  # two hours ago and some seconds
    with pytest.raises(
        Stopped, match=r"stopped after trainer.max_hours in epoch 1 after step 1; .*\n.*resume=true"
    ) as e:
        fit(state, training)
    assert e.value.exit_code == 75
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["training"]["step"] == 1
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()  # nothing was validated


def test_a_run_does_not_stop_before_max_hours(tmp_path):
    state, training = start(tmp_path, epochs=1, max_hours=2.0)
    fit(state, training)
    assert state.epoch == 1


def test_a_repeated_signal_of_a_batch_system_does_not_end_the_run_before_it_is_saved():
    with interruptible() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        with pytest.raises(Interrupted):
            stop.check()
    assert stop.exit_code == 75


def test_a_second_ctrl_c_stops_at_once():
    with interruptible() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_after_ctrl_c_changes_neither_reason_nor_exit_code():
    with interruptible() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert (stop.reason, stop.exit_code) == ("interrupted", 130)


def test_the_handlers_from_before_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with interruptible() as stop:
        assert isinstance(signal.getsignal(signal.SIGUSR1), Interruption)
        stop.check()  # nothing was asked for
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_run_does_not_stop_early_before_min_epochs(tmp_path):
    state, training = start(tmp_path, epochs=9, patience=1, min_delta=100.0, min_epochs=4)
    fit(state, training)
    assert state.epoch == 4
