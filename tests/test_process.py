"""Process settings: memory that is kept, settings that threads inherit, and the number of threads."""

import json
import os
import subprocess
import sys

import pytest

from separate.process import Usage, busy_elsewhere, cores, thread_count, worker_count

linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc and /proc")


def python(code: str, **environment: str):
    """The JSON that a program in its own process prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "OMP_", "GOMP_", "THP_", "SEPARATE_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KEPT = """
import json
from separate.process import release, settle, tune
tune()
import torch
settle(1)

def resident():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

before = resident()
large = torch.ones(50 * 2**18)  # 50 MB
held = resident() - before
del large
kept = resident() - before
release()
print(json.dumps([held, kept, resident() - before]))
"""


@linux
@pytest.mark.parametrize("environment", [{}, {"SEPARATE_TUNE": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=str)
def test_freed_memory_is_kept_until_it_is_released_unless_the_user_says_otherwise(environment):
    held, kept, released = python(KEPT, **environment)
    assert held > 45
    assert (kept > 45) == (not environment), (held, kept)
    assert released < 10


DENORMALS = """
import json, os
from separate.process import settle, tune
tune()
import torch
settle(2)

def survivors():
    return [int((half != 0).sum()) for half in (torch.full((10**6,), 1e-30) * 1e-10).chunk(2)]

found = survivors()
read, write = os.pipe()
if os.fork() == 0:
    torch.set_num_threads(1)
    os.write(write, json.dumps(survivors()).encode())
    os._exit(0)
print(json.dumps([found, json.loads(os.read(read, 100)), torch.get_num_threads()]))
"""


@linux
def test_denormals_are_zero_in_all_threads_and_in_forked_workers():
    assert python(DENORMALS) == [[0, 0], [0, 0], 2]
    assert python(DENORMALS, SEPARATE_TUNE="0") == [[500_000, 500_000], [500_000, 500_000], 2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"SEPARATE_TUNE": "0"}, None),
    ],
    ids=str,
)
def test_threads_spin_for_a_bounded_time_unless_the_user_says_otherwise(given, expected):
    code = "import json, os, separate.process as p; p.tune(); print(json.dumps(os.environ.get('GOMP_SPINCOUNT')))"
    assert python(code, **given) == expected


def test_programs_tune_before_torch_is_loaded():
    code = """
import builtins, json, sys
from separate import process
seen = []
tune = process.tune
def told():
    seen.append("torch" in sys.modules)
    tune()
process.tune = told
import separate.cli, separate.cli.infer, separate.cli.train, separate.cli.evaluate, separate.cli.data
for module in (separate.cli.infer, separate.cli.train, separate.cli.evaluate, separate.cli.data):
    sys.argv = ["program", "--help"]
    stdout, sys.stdout = sys.stdout, open("/dev/null", "w")
    try:
        module.main()
    except SystemExit:
        pass
    sys.stdout = stdout
print(json.dumps(seen))
"""
    assert python(code) == [False] * 4


def test_auto_counts_the_cores_that_the_process_may_use():
    code = """
import json, os
from separate.process import cores, thread_count, worker_count
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(json.dumps([cores(), thread_count("auto"), worker_count("auto"), worker_count("auto", gpu=True)]))
"""
    if sys.platform == "linux":
        assert python(code) == [1, 1, 0, 0]


def test_auto_uses_one_worker_for_a_cpu_and_more_for_a_gpu(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    available = min(2, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())
    assert worker_count("auto") == worker_count("auto", gpu=True) == available - 1
    assert thread_count("auto") == available
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count("auto") == 1
    assert worker_count(5) == thread_count(5) == 5


@linux
def test_auto_leaves_busy_cores_to_other_programs():
    code = """
import json, subprocess, sys, time
from separate.process import cores, thread_count, tune
tune()
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
time.sleep(3)
found = thread_count("auto")
for other in others:
    other.kill()
print(json.dumps(found))
"""
    assert python(code) == 1


def test_the_load_of_this_process_and_short_intervals_are_not_counted_as_others():
    before = Usage(0.0, 100.0, 50.0)
    assert busy_elsewhere(before, Usage(10.0, 120.0, 60.0)) == 1
    assert busy_elsewhere(before, Usage(10.0, 110.0, 60.0)) == 0
    assert busy_elsewhere(before, Usage(0.1, 100.2, 50.0)) == 0


@pytest.mark.parametrize("given", ["abc", "", "0", "-1", "1.5", "9" * 5000, "x,1"])
def test_an_invalid_number_of_openmp_threads_is_ignored(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert thread_count("auto") == cores()


def test_of_a_list_of_openmp_threads_the_first_counts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert thread_count("auto") == 1
