"""Precision of a training step: float32, TF32, or autocast to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from separate.separator import Separator


@dataclass(frozen=True)
class Precision:
    """dtype: of matrix products and convolutions.  STFT, losses and sums over a recording compute in float32.

    tf32: whether NVIDIA GPUs round the factors of float32 products to a mantissa of 10 bits, to compute them faster.
    """

    name: str
    dtype: torch.dtype
    tf32: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of the forward pass."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    @contextmanager
    def float32_products(self) -> Iterator[None]:
        """The context of the whole step: allow TF32 for float32 products, or forbid it."""
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = self.tf32
        try:
            yield
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32),
        Precision("tf32", torch.float32, tf32=True),
        Precision("bf16", torch.bfloat16),
        Precision("fp16", torch.float16),
    )
}


def choose_precision(name: str, separator: Separator) -> Precision:
    """The precision of that name.

    auto: bf16 on a CUDA device that computes in it, or on such a CPU if the network declares `faster_in_bfloat16`; else
    fp32.  GPUs before NVIDIA's Ampere only emulate bf16.
    """
    if name != "auto":
        return PRECISIONS[name]
    kind, faster = separator.device.type, False
    if kind == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu" and getattr(separator.network, "faster_in_bfloat16", False):
        supported = torch.cpu.get_capabilities()
        faster = bool(supported.get("avx512_bf16") or supported.get("amx_bf16"))
    return PRECISIONS["bf16" if faster else "fp32"]
