"""Evaluate without a stop into `whole`, then again into `killed`, stopped by a signal at random moments and restarted.

python killing_evaluation.py SEED KILLS SEPARATE-EVAL'S-ARGUMENTS

SIGKILL, Ctrl-C and SIGTERM take turns.  Evaluations are forked from this process, which has imported everything then.
Prints the number of stops.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from separate.cli import evaluate

LONGEST = 120.0  # seconds of one evaluation
STOPS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}  # and the exit codes


def start(arguments: list[str]) -> int:
    """Fork an evaluation and return its process id."""
    if child := os.fork():
        return child
    os.setsid()  # its scoring processes are in its session
    quiet = os.open("eval.out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.argv = ["separate-eval", *arguments]
    code = 70
    try:
        evaluate.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def kept() -> int:
    return len(list(Path("killed/unfinished").glob("*/*.json")))


def wait_and_stop(child: int, chance: random.Random, number: signal.Signals) -> bool:
    """Stop the evaluation after one more recording; whether it ended before."""
    wanted, begun = kept() + 1, time.monotonic()
    while kept() < wanted:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0, Path("eval.out").read_text()[-3000:]
            return True
        assert time.monotonic() - begun < LONGEST, Path("eval.out").read_text()[-3000:]
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (STOPS[number], 0), (number, code, Path("eval.out").read_text()[-3000:])
    wait_for_the_end_of(child)
    return code == 0


def wait_for_the_end_of(session: int) -> None:
    """Wait until no process of a session is left; the kernel ends scoring processes with their parent."""
    limit = time.monotonic() + 30
    while left := [place.name for place in Path("/proc").iterdir() if place.name.isdigit() and of(place, session)]:
        assert time.monotonic() < limit, f"processes {left} go on without their parent"
        time.sleep(0.01)


def of(place: Path, session: int) -> bool:
    try:
        fields = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and int(fields[3]) == session


def main() -> None:
    seed, most, *arguments = sys.argv[1:]
    sys.argv = ["separate-eval", *arguments, "out=whole"]
    evaluate.main()
    assert torch.get_num_threads() == 1, "a forked process cannot use the threads of its parent"
    tqdm.set_lock(threading.RLock())  # the default one is shared by all processes, and one that is killed may hold it
    chance, kills = random.Random(int(seed)), 0
    while not wait_and_stop(start([*arguments, "out=killed"]), chance, list(STOPS)[kills % 3]):
        kills += 1
    assert kills >= int(most), f"only {kills} kills"
    print(kills)


if __name__ == "__main__":
    main()
