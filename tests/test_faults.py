"""Unexpected faults: the message is one sentence, the traceback goes to a file, and no file is left half-written.

A network of another package raises them, in every place where it can fail.
"""

import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from separate import checkpoint
from separate.cli import data as data_program
from separate.cli import evaluate, infer, train
from separate.cli.crash_report import to_user_error
from tests.conftest import TINY_TOY, tone, write

NETWORK = """\
import os
import signal
import torch
from separate.data.layouts.toy import ToySongs

def break_toy(how):  # the workers are forked later and inherit this
    def draw(self, *arguments):
        if how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        return {}['no such key']
    ToySongs.draw = draw

class Gain(torch.nn.Module):
    '''Fails as FAIL says, where the number of its calls reaches AFTER.'''
    provides = ('waveforms',)
    calls = 0

    def __init__(self, sources: int, when: str = ''):
        super().__init__()
        if when == 'built':
            raise LookupError('no such thing')
        if when in ('worker', 'killed'):
            break_toy(when)
        self.gain = torch.nn.Parameter(torch.full((sources, 1, 1), 0.5))

    def forward(self, mixture):
        fail, after = os.environ.get('FAIL', ''), int(os.environ.get('AFTER', 0))
        Gain.calls += 1
        if fail and Gain.calls > after:
            if fail == 'key':
                raise KeyError('steps')
            if fail == 'memory':
                torch.empty(2**60)
            if fail == 'numpy':
                import numpy
                numpy.empty(2**58)
            if fail == 'shape':
                raise RuntimeError('shapes\\nof two lines')
            raise AssertionError
        return {'waveforms': mixture.unsqueeze(1) * self.gain}
"""

PROGRAMS = {"train": train, "eval": evaluate, "infer": infer, "data": data_program}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def line(words: str) -> int:
    """Number of the first line of the network's file that has these words."""
    return 1 + next(number for number, text in enumerate(NETWORK.splitlines()) if words in text)


OWN = [a for a in TINY_TOY if not a.startswith("model.")]
TRAIN = ["--config-dir", "mine", "model=gain", "loss=si_sdr", "data.workers=0", *OWN]


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with a package of the user's, and a run of its network."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "faulty.py").write_text(NETWORK)
    (folder / "mine" / "model").mkdir(parents=True)
    (folder / "mine" / "model" / "gain.yaml").write_text("_target_: faulty.Gain\nwhen: ''\n")
    write(folder / "mix.wav", tone(300, 3.0))
    done = run("train", *TRAIN, "run=r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def run(name: str, *arguments: str, cwd: Path, **environment: str) -> Done:
    """A program's main() in its own process, forked so that torch need not be loaded again."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = _forked(name, arguments, cwd, environment, out.fileno(), err.fileno())
        out.seek(0)
        err.seek(0)
        return Done(code, out.read(), err.read())


def _forked(name: str, arguments: Sequence[str], cwd: Path, environment: dict[str, str], out: int, err: int) -> int:
    child = os.fork()
    if child == 0:
        code: object = 1
        try:
            os.chdir(cwd)
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ.update({"HYDRA_FULL_ERROR": "0", "OMP_NUM_THREADS": "1", **environment})
            tempfile.tempdir = str(cwd)
            sys.path.insert(0, str(cwd))
            sys.argv = [f"separate-{name}", *arguments]
            torch.set_num_threads(1)  # a fork has none of the parent's threads, and would wait for them
            PROGRAMS[name].main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fault(done: Done, what: str) -> Path:
    """The file of a fault's traceback, which the program names in one sentence."""
    assert done.returncode == 70, (done.stdout, done.stderr)
    assert "Traceback (most recent" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "a fault of the program" in line]
    assert f"unexpected {what}: a fault of the program or of a package that it uses, not of your command" in said
    assert said.endswith("SEPARATE_DEBUG=1 shows it here")
    path = Path(re.search(r"The traceback is in (\S+);", said)[1])
    assert not path.with_name(f"{path.name}.part").exists()
    return path


def test_a_fault_while_training_is_reported_and_saved_in_the_run(own):
    done = run("train", *TRAIN, "trainer.preflight=false", "run=broken", cwd=own, FAIL="key", AFTER="0")
    path = fault(done, f"KeyError: 'steps' (faulty.py, line {line('raise KeyError')})")
    assert path == own / "broken" / "traceback.txt"
    text = path.read_text()
    assert "separate-train" in text and "run=broken" in text and "torch 2." in text
    assert "Traceback (most recent call last)" in text and "raise KeyError('steps')" in text
    done = run("train", *TRAIN, "run=shown", cwd=own, FAIL="key", SEPARATE_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "KeyError: 'steps'" in done.stderr


def test_a_fault_before_the_run_has_begun_leaves_no_run(own):
    done = run("train", *TRAIN, "run=early", "model.when=built", cwd=own)
    path = fault(done, f"LookupError: no such thing (faulty.py, line {line('raise LookupError')})")
    assert path.is_file() and path.parent.parent == own
    assert not (own / "early").exists()


@pytest.mark.slow
def test_a_fault_in_a_job_of_a_sweep_does_not_stop_the_others(own):
    done = run("train", "-m", *TRAIN, "model.when=built,never,later", "hydra.sweep.dir=sweep", cwd=own)
    fault(done, f"LookupError: no such thing (faulty.py, line {line('raise LookupError')})")
    assert "job 0 failed: unexpected LookupError" in done.stdout
    trained = [OmegaConf.load(path) for path in own.glob("sweep/*/config.yaml")]
    assert sorted(config.model.when for config in trained) == ["later", "never"]


def test_a_fault_in_a_worker_is_reported_with_the_original_exception(own):
    done = run("train", *TRAIN, "data.workers=1", "trainer.preflight=false", "model.when=worker", "run=worker", cwd=own)
    path = fault(done, f"KeyError: 'no such key' (faulty.py, line {line('no such key')})")
    assert "in DataLoader worker process 0" in path.read_text()


def test_a_fault_while_scoring_is_reported(own):
    done = run("eval", "run=r", "trust=[faulty]", "device=cpu", cwd=own, FAIL="shape")
    assert fault(done, f"RuntimeError: shapes (faulty.py, line {line('raise RuntimeError')})").is_file()
    assert not (own / "r" / "eval").exists()


@pytest.mark.parametrize(("fail", "what"), [
    ("key", f"KeyError: 'steps' (faulty.py, line {line('raise KeyError')})"),
    ("nothing said", f"AssertionError (faulty.py, line {line('raise AssertionError')})"),
])  # fmt: skip
def test_a_fault_while_separating_leaves_no_stem(own, fail, what):
    """In the second chunk, when the stems of the first have been written."""
    done = run(
        "infer", "-c", "r", "-o", fail, "--trust", "faulty", "--device", "cpu", "--chunk", "1", "--overlap", "0.1",
        "mix.wav", cwd=own, FAIL=fail, AFTER="1",
    )  # fmt: skip
    assert fault(done, what).is_file()
    assert list((own / fail).rglob("*")) == []


@pytest.mark.parametrize(
    ("name", "arguments", "fail", "sentence"),
    [
        (
            "train",
            [*TRAIN, "run=full"],
            "memory",
            r"out of memory \(4.61e\+09 GB requested\); lower batch_size, ",
        ),
        (
            "eval",
            ["run=r", "trust=[faulty]"],
            "memory",
            r"out of memory \(4.61e\+09 GB requested\); lower chunk",
        ),
        ("infer", ["-c", "r", "--trust", "faulty", "-o", "o", "mix.wav"], "numpy", r"2.00 EiB .*; lower --chunk"),
    ],
)
def test_lack_of_memory_is_reported_with_options_that_need_less(own, name, arguments, fail, sentence):
    done = run(name, *arguments, cwd=own, FAIL=fail)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(sentence, done.stderr.strip().splitlines()[-1]), done.stderr


def test_a_worker_killed_by_the_system_is_reported_as_lack_of_memory(own):
    done = run("train", *TRAIN, "data.workers=1", "trainer.preflight=false", "model.when=killed", "run=killed", cwd=own)
    assert done.returncode == 1, done.stderr
    assert "the system ended a worker process, most likely because memory ran out; lower batch_size" in done.stderr


def test_a_separation_that_is_terminated_leaves_no_files(own):
    """SIGTERM, as a scheduler sends it, between two chunks."""
    (own / "terminated.py").write_text(
        "import faulty, os, signal, torch\n"
        "class Gain(faulty.Gain):\n"
        "    def forward(self, mixture):\n"
        "        if faulty.Gain.calls == 1:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().forward(mixture)\n"
    )
    contents = checkpoint.read(own / "r" / "checkpoints" / "best.ckpt")
    contents["config"]["model"]["_target_"] = "terminated.Gain"
    checkpoint.save(own / "terminated.ckpt", contents)
    done = run("infer", "-c", "terminated.ckpt", "-o", "out", "--trust", "terminated", "--chunk", "1",
               "--overlap", "0.1", "mix.wav", cwd=own)  # fmt: skip
    assert done.returncode == 128 + 15, done.stderr
    assert list((own / "out").iterdir()) == []


def test_a_fault_of_a_library_is_reported_by_separate_data_too(stems, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("{}['broken']\n")
    arguments = ["info", "data=stems", f"data.root={stems}", "data.sources=[low,high]", "data.sample_rate=8000",
                 "data.excerpt=1"]  # fmt: skip
    program = str(Path(sys.executable).parent / "separate-data")
    places = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [program, *arguments, "picture=a.png"],
        cwd=tmp_path, env={**os.environ, **places}, capture_output=True, text=True,
    )  # fmt: skip
    done = Done(ended.returncode, ended.stdout, ended.stderr)
    assert fault(done, "KeyError: 'broken' (__init__.py, line 1)").parent.parent == tmp_path
    assert not (tmp_path / "a.png").exists()


def test_a_picture_of_an_unknown_kind_is_refused(stems, call, tmp_path):
    arguments = ["info", "data=stems", f"data.root={stems}", "data.sources=[low,high]", "data.sample_rate=8000",
                 "data.excerpt=1"]  # fmt: skip
    code, _, err = call(data_program, *arguments, "picture=a.xyz", cwd=tmp_path)
    assert code == 2 and "picture=a.xyz: no picture can be written as xyz; choose from" in err


def test_a_traceback_that_cannot_be_written_is_mentioned_in_the_message(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    found = to_user_error("separate-infer", KeyError("steps"))
    assert found.exit_code == 70
    assert str(found).endswith("The traceback could not be written; SEPARATE_DEBUG=1 shows it here")
