"""Bidirectional LSTM layers for the CPU, with the two directions computed at the same time."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from separate.interrupts import signals_held

layer_forward = torch.ops.aten.mkldnn_rnn_layer
layer_backward = torch.ops.aten.mkldnn_rnn_layer_backward
LSTM = 2  # oneDNN's number of the cell


def directions_at_once(layers: nn.RNNBase, x: Tensor) -> bool:
    """Whether `bidirectional_lstm` computes these layers on x: on a CPU with threads, where torch would call oneDNN."""
    return (
        isinstance(layers, nn.LSTM)
        and layers.bidirectional
        and x.device.type == "cpu"
        and torch.get_num_threads() > 1
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
        and torch.backends.mkldnn.is_available()
        and platform.machine() in ("x86_64", "AMD64")
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.numel() > 0
        and (_precision(x) == torch.float32 or (_precision(x) == torch.bfloat16 and _has_bfloat16()))
    )


def bidirectional_lstm(layers: nn.LSTM, x: Tensor) -> Tensor:
    """The output of `layers` for x, (B, N, features) -> (B, N, 2 units): bit for bit that of torch.

    torch computes one direction after the other and spreads each of their small products over all threads, which meet
    at a barrier several times per frame.  Here each direction has half of the threads to itself, and they
    meet once per layer: faster, and much less disturbed by other programs on the same cores.
    """
    precision = _precision(x)
    y = x.transpose(0, 1).to(precision)  # (N, B, features)
    for index in range(layers.num_layers):
        weights = [getattr(layers, name).to(precision) for name in layers._all_weights[2 * index]]
        weights += [getattr(layers, name).to(precision) for name in layers._all_weights[2 * index + 1]]
        y = _Layer.apply(y, torch.is_grad_enabled(), *weights)
        if index + 1 < layers.num_layers and layers.dropout:
            y = functional.dropout(y, layers.dropout, layers.training)
    return y.transpose(0, 1)


class _Layer(torch.autograd.Function):
    """(N, B, features) and the four weights of each direction -> (N, B, 2 units).  Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, train: bool, *weights: Tensor) -> Tensor:
        x, units = x.contiguous(), weights[1].shape[1]
        start = x.new_zeros(1, x.shape[1], units)

        def run(way: int) -> Sequence[Tensor]:
            with torch.set_grad_enabled(train):  # oneDNN keeps what the gradient needs
                own = [weight.detach() for weight in weights[4 * way : 4 * way + 4]]
                return layer_forward(
                    x.detach(), *own, start, start, bool(way), [], LSTM, units, 1, True, False, False, train
                )

        ahead, back = _both(run)
        if train:
            ctx.save_for_backward(x, start, *weights, *ahead, *back)
        return torch.cat([ahead[0], back[0]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, start, *saved = ctx.saved_tensors
        weights, outputs = saved[:8], saved[8:]
        units = start.shape[-1]

        def run(way: int) -> Sequence[Tensor]:
            out, hidden, cell, workspace = outputs[4 * way : 4 * way + 4]
            own = gradient[..., way * units : (way + 1) * units].contiguous()
            return layer_backward(
                *(x, *weights[4 * way : 4 * way + 4], start, start, out, hidden, cell, own, None, None),
                *(bool(way), LSTM, units, 1, True, True, False, [], False, workspace),
            )

        ahead, back = _both(run)
        return (ahead[0] + back[0], None, *ahead[1:5], *back[1:5])


def _both(run: Callable[[int], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    return list(_two_threads(torch.get_num_threads()).map(run, (0, 1)))


@lru_cache(maxsize=1)
def _two_threads(threads: int) -> ThreadPoolExecutor:
    """Two threads that compute with half of `threads` each."""
    started = Barrier(3)

    def start() -> None:
        torch.get_num_threads()  # takes the number of the process, which would undo the next line later
        torch.set_num_threads(max(threads // 2, 1))
        started.wait()

    pool = ThreadPoolExecutor(2, "lstm", start)
    with signals_held():  # oneDNN must not meet a signal: see `protect_native_code`
        for _ in range(2):
            pool.submit(torch.get_num_threads)
    started.wait()
    torch.set_num_threads(threads)  # for this thread, and for MKL, which has one number for all
    return pool


def _precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@lru_cache(maxsize=1)
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
