"""Bidirectional LSTM layers on the CPU with both directions computed in parallel."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from separate.interrupts import signals_held
from separate.shapes import Float

layer_forward = torch.ops.aten.mkldnn_rnn_layer
layer_backward = torch.ops.aten.mkldnn_rnn_layer_backward
LSTM = 2  # oneDNN's code for the type of cell


def is_supported(layers: nn.RNNBase, x: Tensor) -> bool:
    """Whether `bidirectional_lstm` can compute these layers on x: an LSTM on a CPU for which torch would use oneDNN."""
    return bool(
        isinstance(layers, nn.LSTM)
        and layers.bidirectional
        and x.device.type == "cpu"
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and platform.machine() in ("x86_64", "AMD64")
        and not torch.compiler.is_exporting()
        and type(x) is Tensor
        and x.numel() > 0
        and (_precision(x) == torch.float32 or (_precision(x) == torch.bfloat16 and _has_bfloat16()))
    )


def bidirectional_lstm(layers: nn.LSTM, x: Float[Tensor, "B N features"]) -> Float[Tensor, "B N _"]:
    """The output of `layers` for x, with 2 x units features.

    torch computes one direction after the other and splits each of their small products among all threads, which wait
    for each other several times per frame.  Here each direction has half of the threads, and the threads wait once per
    layer, which is faster and less sensitive to other programs on the same cores.  Without dropout, outputs and float32
    gradients are bit for bit those of torch, for any number of threads.  bfloat16 gradients of the two directions are
    added in float32.
    """
    precision = _precision(x)
    y = x.transpose(0, 1).to(precision)  # (N, B, features)
    for index in range(layers.num_layers):
        names = itertools.chain(*layers._all_weights[2 * index : 2 * index + 2])
        y = _Layer.apply(y, torch.is_grad_enabled(), *(getattr(layers, name).to(precision) for name in names))
        if layers.training and index + 1 < layers.num_layers:
            y = dropout(y, layers.dropout)
    return y.transpose(0, 1)


def exclude_from_compilation() -> None:
    """Make torch.compile call `bidirectional_lstm` as it is.

    torch.compiler.disable as a decorator would do so too, but imports torch._dynamo, which takes all programs a second.
    """
    global bidirectional_lstm
    bidirectional_lstm = torch.compiler.disable(bidirectional_lstm)


def dropout(x: Float[Tensor, "*B"], probability: float) -> Float[Tensor, "*B"]:
    """Set values to zero with a probability in [0, 1), rounded to 1/65536, and scale the others to keep the mean.

    Faster than torch's, because it draws 16 random bits for each value instead of 64.
    """
    if not probability:
        return x
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # the full range of int64
    threshold = min(round(probability * 2**16), 2**16 - 1) - 2**15
    dropped = words.view(torch.int16)[: x.numel()].view(x.shape) < threshold
    return x.masked_fill(dropped, 0) * (1 / (1 - probability))


class _Layer(torch.autograd.Function):
    """(N, B, features) and the four weights of each direction -> (N, B, 2 units).  Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, train: bool, *weights: Tensor) -> Tensor:
        x, units = x.contiguous(), weights[1].shape[1]
        start = x.new_zeros(1, x.shape[1], units)

        def run(direction: int) -> Sequence[Tensor]:
            with torch.set_grad_enabled(train):  # oneDNN then stores its workspace for the gradient
                own = [weight.detach() for weight in weights[4 * direction : 4 * direction + 4]]
                return layer_forward(
                    x.detach(), *own, start, start, bool(direction), [], LSTM, units, 1, True, False, False, train
                )

        forwards, backwards = _run_directions(run)
        if train:
            ctx.save_for_backward(x, start, *weights, *forwards, *backwards)
        return torch.cat([forwards[0], backwards[0]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, start, *saved = ctx.saved_tensors
        weights, outputs = saved[:8], saved[8:]
        units = start.shape[-1]

        def run(direction: int) -> Sequence[Tensor]:
            out, hidden, cell, workspace = outputs[4 * direction : 4 * direction + 4]
            d_out = gradient[..., direction * units : (direction + 1) * units].contiguous()
            return layer_backward(
                *(x, *weights[4 * direction : 4 * direction + 4], start, start, out, hidden, cell, d_out, None, None),
                *(bool(direction), LSTM, units, 1, True, True, False, [], False, workspace),
            )

        forwards, backwards = _run_directions(run)
        return (forwards[0] + backwards[0], None, *forwards[1:5], *backwards[1:5])


def _run_directions(run: Callable[[int], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """[run(0), run(1)], forward and backward in time, in parallel if there is more than one thread."""
    threads = torch.get_num_threads()
    return list(map(run, (0, 1)) if threads == 1 else _direction_pool(threads).map(run, (0, 1)))


@lru_cache(maxsize=1)
def _direction_pool(threads: int) -> ThreadPoolExecutor:
    """Two Python threads, each of which computes with half of torch's `threads`."""
    started = Barrier(3)

    def start() -> None:
        torch.get_num_threads()  # torch reads the setting of the process once; later it would undo the next line
        torch.set_num_threads(max(threads // 2, 1))
        started.wait()

    pool = ThreadPoolExecutor(2, "lstm", start)
    with signals_held():  # no signal may interrupt oneDNN: see `protect_native_code`
        for _ in range(2):
            pool.submit(torch.get_num_threads)
    started.wait()
    torch.set_num_threads(threads)  # for this thread, and for MKL, which has one setting for all threads
    return pool


def _precision(x: Tensor) -> torch.dtype:
    cast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if cast else x.dtype


@lru_cache(maxsize=1)
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
