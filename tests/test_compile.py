"""trainer.compile: torch.compile gives the same weights, and checkpoints without traces of it."""

import shutil
import subprocess
import sys

import pytest
import torch

from separate import checkpoint
from separate.cli.crash_report import to_user_error
from tests.conftest import TINY_TOY

TRAIN = [sys.executable, "-m", "separate.cli.train"]  # shapes are checked in the processes of tests, not in these


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_trains_to_the_same_weights_and_loads_without_compilation(tmp_path):
    found = []
    for compiled in ("false", "true"):
        options = [*TINY_TOY, "trainer.precision=fp32", f"trainer.compile={compiled}", f"run=compile_{compiled}"]
        done = subprocess.run([*TRAIN, *options], cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        found.append(checkpoint.read(tmp_path / f"compile_{compiled}" / "checkpoints" / "best.ckpt"))
        checkpoint.load(tmp_path / f"compile_{compiled}")
    plain, compiled = (contents["model"] for contents in found)
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)
    assert found[0]["scores"]["valid/loss"] == pytest.approx(found[1]["scores"]["valid/loss"], rel=1e-4)


def test_a_network_that_cannot_be_compiled_is_reported_in_one_sentence():
    def backend(graph, inputs):
        raise NotImplementedError("no such processor")

    with pytest.raises(Exception, match="no such processor") as failed:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    said = str(to_user_error("separate-train", failed.value))
    assert said.startswith("torch.compile cannot compile this network on this machine (")
    assert said.endswith("; use trainer.compile=false")
