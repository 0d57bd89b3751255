"""What needs a CUDA device: training there, and the same separation as on the CPU."""

import pytest
import torch

import separate
from separate import checkpoint
from separate.cli import train
from tests.conftest import TINY_TOY

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_a_run_on_the_gpu_trains_and_separates_as_on_the_cpu(tmp_path, monkeypatch, precision):
    arguments = [a for a in TINY_TOY if a != "device=cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["separate-train", *arguments, "device=cuda", f"trainer.precision={precision}", "run=r"]
    )
    train.main()
    assert checkpoint.read(checkpoint.find("r"))["training"]["random_cuda"] is not None
    mixture = torch.randn(16000)
    on_cpu, on_gpu = (separate.load("r", device)(mixture, 8000) for device in ("cpu", "cuda"))
    for name in on_cpu:
        torch.testing.assert_close(on_cpu[name], on_gpu[name], atol=1e-4, rtol=1e-3)
