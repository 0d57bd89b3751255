"""A pretended CUDA device: tensors hold their values on the CPU, and operations that make the host wait are recorded.

Tensors have real values, so that every branch runs and results can be compared.  Like a GPU, the device refuses
operations on tensors of both devices, and metrics that are read before their copy is done.
`torch._subclasses.FakeTensorMode` also has such tensors, but without values, so that code that depends on them fails,
and without a backward pass: with a CUDA build of torch and no driver, autograd asks for the missing device's context.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import separate

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# operations that return a number to the host, or a shape that depends on values
WAIT = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.bincount, aten.repeat_interleave, aten._linalg_check_errors,
}  # fmt: skip
INDEX = {aten.index, aten.index_put, aten.index_put_}


class OnCuda(Tensor):
    """A tensor that reports a CUDA device; torch's C++ sees a meta tensor, so that autograd needs no device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCuda:
        size, place = (held.shape, held.stride(), held.storage_offset()), torch.device("meta")
        found = Tensor._make_wrapper_subclass(cls, *size, dtype=held.dtype, device=place)
        found.held = held
        return found

    device = property(lambda self: CUDA)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnCuda({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # so that its checkpoints open anywhere

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the pretended device, outside of it")


class Pretending(TorchDispatchMode):
    """waits: the functions of `separate` in which the host has waited, in order; flying: copies in progress."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.flying: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode nothing else decomposes it
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, OnCuda) for tensor in tensors)
        target = kwargs.get("device")
        goes = there if target is None else target.type != "cpu"  # C++ asks for meta tensors
        if func.overloadpacket is aten.copy_:
            goes = isinstance(args[0], OnCuda)
            self._check_copy(func, args[0], args[1], (len(args) > 2 and args[2]) or kwargs.get("non_blocking"))
        elif func.overloadpacket is aten._to_copy:
            if goes != there and not kwargs.get("non_blocking"):
                self._wait()
        elif there:
            self._check(func, args, tensors)
        if not (there or goes):
            return func(*args, **kwargs)
        kwargs.update({"device": torch.device("cpu")} if target is not None else {})
        held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, OnCuda) else x, (args, kwargs))
        found = func(*held_args, **held_kwargs)
        if func.overloadpacket is aten._to_copy and there and not goes and kwargs.get("non_blocking"):
            self.flying.append((found, found.clone()))
            found.fill_(torch.nan if found.is_floating_point() else 0)
        written = [
            kwargs.get(argument.name, args[number] if number < len(args) else None)
            for number, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if torch.Tag.inplace_view in func.tags:  # e.g. transpose_: the outer tensor's shape and strides change too
            with no_dispatch():
                func(*args, **kwargs)
        if written and not func._schema.returns:
            return None
        if written:
            return written[0] if len(func._schema.returns) == 1 else tuple(written)
        if not goes:
            return found
        inference = tensors[0].is_inference() if func.is_view else torch.is_inference_mode_enabled()
        with torch.inference_mode(inference):  # a view has the mode of its base
            return tree_map(lambda x: OnCuda(x.resolve_conj()) if isinstance(x, Tensor) else x, found)

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        packet = func.overloadpacket
        for tensor in tensors:
            index = packet in INDEX and tensor is not args[0]  # which may lie on the CPU, and is copied
            if not isinstance(tensor, OnCuda) and tensor.ndim > 0 and not index:
                raise RuntimeError(f"{func}: expected all tensors on one device, and found cuda:0 and cpu")
        mask = packet in INDEX and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        moved = packet in INDEX and any(t is not None and not isinstance(t, OnCuda) for t in args[1])
        if packet in WAIT or mask or moved:
            self._wait()

    def _check_copy(self, func: Any, to: Tensor, of: Tensor, non_blocking: bool) -> None:
        across = isinstance(to, OnCuda) != isinstance(of, OnCuda)
        if across and not non_blocking and of.ndim > 0:
            self._wait()

    def _wait(self) -> None:
        frame: Any = sys._getframe(2)
        package = Path(separate.__file__).parent
        while frame and package not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame else "the test"
        self.waits.append(where)


@contextmanager
def pretended_cuda() -> Iterator[Pretending]:
    """A context in which `cuda:0` exists."""
    mode = Pretending()

    class Event:
        def record(self) -> None:
            self.before, mode.flying = mode.flying, []

        def synchronize(self) -> None:
            mode.waits.append("event")
            for copy, values in self.before:
                copy.copy_(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        patch.setattr(torch.cuda, "Event", Event)
        with mode:
            yield mode
