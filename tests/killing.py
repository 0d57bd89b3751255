"""Train without a stop into the folder `whole`, then again into `killed`, killed at random moments and resumed.

python killing.py SEED KILLS SEPARATE-TRAIN'S-ARGUMENTS

Trainings are forked from this process, which has imported everything by then, so that each starts within a second.
Each is killed by SIGKILL at a random moment: while it starts, after some checkpoints, or while one is written.  At some
starts the next checkpoint meets a full disk.  Prints the number of kills.
"""

import faulthandler
import itertools
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from separate.cli import train

LONGEST = 120.0  # seconds until a training that does not advance ends, and says where each of its threads stood


def start(arguments: list[str]) -> int:
    """Fork a training and return its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    quiet = os.open("train.out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=2)
    sys.argv = ["separate-train", *arguments]
    code = 70
    try:
        train.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit code of a training, or None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def written(last: Path) -> int:
    return last.stat().st_mtime_ns if last.exists() else 0


def wait_and_kill(child: int, last: Path, chance: random.Random) -> int | None:
    """Kill the training while it starts or after 1 or 2 checkpoints; its exit code if it ended before, else None."""
    wanted, seen = chance.randrange(3), written(last)
    delay = 0.01 if wanted else 1.0  # seconds at most, after the last checkpoint or after the start
    while wanted > 0:
        if (code := ended(child)) is not None:
            return code
        if (now := written(last)) != seen:
            seen, wanted = now, wanted - 1
        time.sleep(0.001)
    time.sleep(chance.uniform(0, delay))
    if (code := ended(child)) is not None:
        return code
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    seed, most, *arguments = sys.argv[1:]
    sys.argv = ["separate-train", *arguments, "data.workers=0", "hydra.run.dir=whole"]
    train.main()
    assert torch.get_num_threads() == 1, "a forked process cannot use the threads of its parent"
    tqdm.set_lock(threading.RLock())  # the default one is shared by all processes, and one that is killed may hold it
    chance, kills, last = random.Random(int(seed)), 0, Path("killed/checkpoints/last.ckpt")
    for attempt in itertools.count():
        if attempt % 8 == 7 and last.exists():  # this start, or a later one if this is killed before, has no space
            Path(f"{last}.part").unlink(missing_ok=True)
            Path(f"{last}.part").symlink_to("/dev/full")
        code = wait_and_kill(start([*arguments, "hydra.run.dir=killed"]), last, chance)
        kills += code is None
        if code == 0:
            break
        said = Path("train.out").read_text()
        assert code is None or "could not be written (the disk is full)" in said[-500:], said[-3000:]
    assert kills >= int(most), f"only {kills} kills"
    print(kills)


if __name__ == "__main__":
    main()
