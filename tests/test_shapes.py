"""Shapes in signatures: checked in the tests, without cost in use."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from separate.models.recurrent import MaskInference
from separate.stft import STFT, weighted_overlap_add


def test_a_wrong_number_of_dimensions_is_refused():
    with pytest.raises(TypeCheckError, match="MaskInference.forward"):
        MaskInference(2, 1, 33, 8000, units=4)(torch.randn(33, 10, dtype=torch.complex64))


def test_a_wrong_kind_of_number_is_refused():
    with pytest.raises(TypeCheckError, match="STFT.forward"):
        STFT(64, 32)(torch.zeros(1, 1, 100, dtype=torch.complex64))


def test_sizes_that_do_not_agree_are_refused():
    with pytest.raises(TypeCheckError, match="weighted_overlap_add"):
        weighted_overlap_add(torch.randn(2, 5, 64), torch.ones(63), 32, 100)


def test_a_wrong_result_is_refused(monkeypatch):
    monkeypatch.setattr("separate.stft.rearrange", lambda x, pattern: x.flatten(0, -3).mT[:1])
    monkeypatch.setattr(torch.Tensor, "reshape", lambda x, *shape: x)
    with pytest.raises(TypeCheckError, match="return value of separate.stft.STFT.inverse"):
        STFT(64, 32).inverse(torch.randn(2, 3, 33, 5, dtype=torch.complex64), 100)


def test_in_use_nothing_is_imported_and_nothing_wraps_a_function():
    code = """if True:
        import inspect, sys
        import separate
        from separate.models.conv_tasnet import ConvTasNet
        from separate.separator import Separator
        from separate.shapes import Float
        from separate.stft import STFT, weighted_overlap_add
        from torch import Tensor

        assert not {"jaxtyping", "beartype"} & set(sys.modules)
        for function in (ConvTasNet.forward, Separator.span.__wrapped__, STFT.inverse, weighted_overlap_add):
            assert not hasattr(function, "__wrapped__")
            assert all(isinstance(hint, str) for hint in inspect.get_annotations(function).values())
        assert Float[Tensor, "B C T"] is Tensor
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
