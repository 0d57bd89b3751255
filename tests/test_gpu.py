"""What needs a CUDA device: training there, and the same separation as on the CPU."""

from dataclasses import replace

import pytest
import torch

import separate
from separate import checkpoint
from separate.build import build_loss, build_separator
from separate.cli import train
from separate.config import shipped
from tests.conftest import TINY_TOY
from tests.tiny import MODELS, batch_of, config_of, section

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


@pytest.mark.parametrize("model", MODELS)
def test_every_model_gives_on_cuda_what_it_gives_on_the_cpu_and_trains_there(model):
    spec = shipped("model")[model]
    own = next((default for default in spec.get("defaults", [])), {"": "tpsa"})
    loss = next(iter(own.values()))
    target = next(iter(shipped("loss")[loss].get("defaults", [{"": "tpsa"}])[0].values()))
    config = config_of(model, interchangeable=True, loss=section("loss", loss), target=section("target", target))
    torch.manual_seed(0)
    separator = build_separator(config).eval()
    criterion = build_loss(config, separator)
    batch = batch_of(separator.stft)
    expected = separator.separate(batch).heads
    separator.cuda()
    moved = replace(batch, mixture=batch.mixture.cuda(), sources=batch.sources.cuda(), stft=separator.stft)
    found = separator.separate(moved).heads
    for name, head in expected.items():
        torch.testing.assert_close(found[name].cpu(), head, rtol=1e-2, atol=1e-3)
    separator.train()
    with torch.autocast("cuda", torch.bfloat16):
        value, _ = criterion.cuda()(separator.separate(moved), moved)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in separator.parameters())
    assert separator.eval().separate(moved).estimates.isfinite().all()
