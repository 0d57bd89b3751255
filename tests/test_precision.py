"""The choice of `trainer.precision=auto` on GPUs, by their compute capability."""

from types import SimpleNamespace

import pytest
import torch

from separate.training.precision import choose_precision


@pytest.mark.skipif(torch.version.hip is not None, reason="AMD's GPUs have no compute capability")
@pytest.mark.parametrize(("capability", "expected"), [(7, "fp32"), (8, "bf16")])
def test_auto_takes_bf16_only_on_gpus_that_do_not_emulate_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # by emulation
    assert choose_precision("auto", SimpleNamespace(device=torch.device("cuda"))).name == expected
