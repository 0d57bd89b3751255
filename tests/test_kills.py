"""SIGKILL: no doubled points in TensorBoard, and no worker that outlives its parent."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from separate.config import LoggerConfig
from separate.data.storage.parallel import in_parallel
from separate.errors import SeparateError
from separate.training.runlog import RunLog
from tests.conftest import TINY_TOY

FACTS = {"train/loss": 1.0, "valid/loss": 1.0, "valid/si_sdr": 0.0, "valid/si_sdri": 0.0, "minutes": 0.1}


def scalars(folder: Path) -> dict[str, list[int]]:
    """The steps of every scalar, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log_epochs(folder: Path, done: int, epochs: list[int], die: bool) -> None:
    """Log these epochs, of 10 steps each, in a process that is killed afterwards.  done: epochs that were saved."""
    time.sleep(1.05)  # event files are ordered by the second in which they were created
    child = os.fork()
    if child == 0:
        try:
            log = RunLog(folder, LoggerConfig(), done)
            for epoch in epochs:
                log.epoch({**FACTS, "epoch": epoch, "step": 10 * epoch}, False)
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            log.close()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if die else 0)


@pytest.mark.parametrize(
    "saved",
    [0, 1, 2],
    ids=["before anything was saved", "before the second epoch was saved", "right after the second epoch was saved"],
)
def test_an_epoch_that_was_logged_and_then_lost_is_shown_once(tmp_path, saved):
    """Killed after an epoch was logged; the resumed run starts after the last epoch in a checkpoint."""
    log_epochs(tmp_path, 0, [1, 2], die=True)
    log_epochs(tmp_path, saved, list(range(saved + 1, 4)), die=True)
    log_epochs(tmp_path, 2, [3, 4], die=False)  # and once more
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    found = scalars(tmp_path)
    assert set(found) == {*FACTS, "epoch", "step"}
    assert all(steps == [10, 20, 30, 40] for steps in found.values()), found


def test_an_event_file_that_a_kill_cut_off_does_not_hide_what_follows(tmp_path):
    log_epochs(tmp_path, 0, [1, 2], die=True)
    events = next((tmp_path / "tensorboard").iterdir())
    events.write_bytes(events.read_bytes()[:-7])
    log_epochs(tmp_path, 1, [2, 3], die=False)
    assert all(steps == [10, 20, 30] for steps in scalars(tmp_path).values())


@pytest.mark.slow
def test_a_run_killed_between_the_log_and_the_checkpoint_shows_each_epoch_once(tmp_path, program):
    """The checkpoint of an epoch's last step precedes the epoch's end; the pictures are drawn in between."""
    longer = [a for a in TINY_TOY if a not in ("debug=fast", "logger.tensorboard=false")] + [
        "batch_size=2", "data.excerpt=0.5", "data.workers=0", "trainer.epochs=2", "trainer.steps_per_epoch=3",
        "trainer.save_every=1e-9", "hydra.run.dir=r", "resume=auto",
    ]  # fmt: skip
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(  # kills at exactly that moment; everything else is the installed program
        "import os, signal, sys\n"
        "class Found:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'matplotlib.backends.backend_agg':  # first imported for the pictures of epoch 1\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.meta_path.insert(0, Found())\n"
    )
    command = [str(Path(sys.executable).parent / "separate-train"), *longer]
    killed = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "r" / "checkpoints" / "best.ckpt").exists()
    killer.unlink()
    done = program("separate-train", *longer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = scalars(tmp_path / "r")
    timed = {"train/steps_per_second", "train/examples_per_second", "train/waiting", "train/memory"}
    timed.add("best/valid/loss")  # once at the end; the others count steps after the kill, and epoch 1 has none
    assert {tag: steps for tag, steps in found.items() if steps != [3, 6]} == {tag: [6] for tag in timed}


# ------------------------------------------------------------------------------------------------------------- workers

LOADER = """
import sys
import numpy, torch
from torch.utils.data import Dataset
from separate.data.loader import load

class Slow(Dataset):
    def __getitem__(self, step):
        import time
        if step:
            time.sleep(60)  # busy, and does not check whether the parent is alive
        return step

batches = load(Slow(), range(100), 2, False)
next(batches)
print("started\\n", end="", flush=True)  # in one write, also with another worker
next(batches)
"""
POOL = """
import time
from separate.data.storage.parallel import in_parallel

def work(item):
    print("started\\n", end="", flush=True)  # in one write, also with another worker
    time.sleep(60)

in_parallel(work, range(8), 2, "waiting")
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kernel", [True, False], ids=["by the kernel", "by the pipe"])
@pytest.mark.parametrize("script", [LOADER, POOL], ids=["loader", "pool"])
def test_workers_end_with_a_parent_that_is_killed(script, kernel):
    without = "from separate.data.storage import parallel\nparallel._killed_by_kernel = lambda: False\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script if kernel else without + script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "started"
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    begun = time.monotonic()
    while any(map(running, workers)) and time.monotonic() - begun < 3:  # torch's own check takes 5 seconds or more
        time.sleep(0.02)
    left = [worker for worker in workers if running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert left == []


def test_a_worker_whose_parent_has_ended_already_ends_at_once(tmp_path):
    """The parent has ended before the kernel is asked to watch it."""
    script = (
        "import multiprocessing, os, pathlib, time\n"
        "from separate.data.storage.parallel import end_with_parent\n"
        "def work():\n"
        "    while os.getppid() == multiprocessing.parent_process().pid:\n"
        "        time.sleep(0.01)\n"
        "    pathlib.Path('asked').touch()\n"
        "    end_with_parent()\n"
        "    pathlib.Path('outlived').touch()\n"
        "process = multiprocessing.get_context('fork').Process(target=work)\n"
        "process.start()\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "asked").exists()
    time.sleep(0.5)
    assert not (tmp_path / "outlived").exists()


def test_a_process_that_is_not_a_worker_is_not_ended():
    script = "from separate.data.storage.parallel import end_with_parent; end_with_parent(); print('on')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "on\n", done.stderr


def test_the_log_of_a_new_run_shows_everything(tmp_path):
    log = RunLog(tmp_path, LoggerConfig())
    log.epoch({**FACTS, "epoch": 1, "step": 1}, True)
    log.close()
    assert scalars(tmp_path)["valid/loss"] == [1]


def end_at_5(item: int, how: signal.Signals) -> int:
    if item == 5:
        os.kill(os.getpid(), how)
    return item


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_worker_of_a_pool_leaves_stop_signals_to_its_parent():
    for how in (signal.SIGTERM, signal.SIGINT):
        assert in_parallel(partial(end_at_5, how=how), range(40), 2, "reading") == list(range(40))


HEEDS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets programs in the background ignore
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
"""
ENDING = {
    "an interrupt": ("pass", "KeyboardInterrupt"),
    "a fault": ("if item == 0: time.sleep(1); {}['steps']", "KeyError: 'steps'"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ending", ENDING)
def test_a_pool_ends_its_busy_workers_at_once(ending):
    """After an interrupt or an unforeseen exception, while the others work for another minute."""
    fails, last = ENDING[ending]
    script = HEEDS + POOL.replace("    time.sleep(60)", f"    {fails}\n    time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().strip() == "started"
    workers = children(process.pid)
    begun = time.monotonic()
    if ending == "an interrupt":
        process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - begun < 10
    assert said.strip().splitlines()[-1] == last
    assert "InvalidStateError" not in said and process.returncode != 0
    assert len(workers) >= 2 and not any(map(running, workers))


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_pool_whose_worker_is_killed_raises_instead_of_waiting():
    with pytest.raises(SeparateError, match="reading: the system ended a worker process"):
        in_parallel(partial(end_at_5, how=signal.SIGKILL), range(40), 2, "reading")
    assert not multiprocessing.active_children()
