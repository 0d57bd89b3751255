"""Localise non-finite values: the first module whose output or gradient is not finite although its inputs are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from separate.data.batch import Batch
from separate.separator import Separation


@dataclass(frozen=True)
class Finding:
    """The first non-finite tensor of a step.  module: its name with its class; what: e.g. "its output".

    direction: "forward", "backward", or "input" for a tensor that comes from no module.
    """

    module: str
    direction: str
    what: str
    shape: tuple[int, ...]
    bad: int
    values: int
    note: str = ""

    def __str__(self) -> str:
        counted = f"{self.bad} of {self.values} values of {self.what} {self.shape} are not finite{self.note}"
        if self.direction == "input":
            return f"the batch is not finite before any module computes: in {self.module}, {counted}"
        given = "its inputs" if self.direction == "forward" else "the gradients of its outputs"
        return f"first in the {self.direction} pass of {self.module}: {given} are finite, and {counted}"


class Anomalies:
    """Hooks on all modules of a network and a loss.  first: what they found in this step, or None.

    Each module gets its inputs as views of its own, so that the gradient of an input is that of this module alone.
    A module without calls of its own (its parent computes all layers in one function) does not appear; its parent does.
    """

    def __init__(self, network: nn.Module, loss: nn.Module) -> None:
        self.first: Finding | None = None
        self._calls: list[tuple[str, bool]] = []  # the modules that compute now, and whether their inputs are finite
        self._hooks: dict[int, tuple[Tensor, Any]] = {}  # of outputs, by identity; a reference keeps it unique
        self._loss = f"loss ({type(loss).__name__})"
        for prefix, root in (("network", network), ("loss", loss)):
            for path, module in root.named_modules(prefix=prefix):
                name = f"{path} ({type(module).__name__})"
                module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
                module.register_forward_hook(partial(self._leave, name), with_kwargs=True)
                for parameter_name, parameter in module.named_parameters(recurse=False):
                    if parameter.requires_grad:
                        parameter.register_hook(partial(self._gradient, name, f"the gradient of {parameter_name}"))

    def begin(self) -> None:
        """Forget the last step."""
        self.first = None
        self._calls.clear()
        self._hooks.clear()

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        inputs = list(_tensors((args, kwargs)))
        finite = all(map(_finite, (tensor for _, tensor in inputs)))
        if not finite and not self._calls:  # the network or the loss
            for what, tensor in inputs:
                self._note(name, "input", what or "the input", tensor)
        self._calls.append((name, finite))
        return tree_map_only(Tensor, partial(self._own_view, name), (args, kwargs))

    def _own_view(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(partial(self._gradient, name, "the gradient of its input"))
        return view

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        _, finite = self._calls.pop()
        user = self._calls[-1][0] if self._calls else self._loss  # what computes with the output outside of modules
        for _, tensor in _tensors(output):
            if finite:
                self._note(name, "forward", "its output", tensor, module)
            if tensor.requires_grad:
                if id(tensor) in self._hooks:  # the output of a child is also that of its parent
                    self._hooks[id(tensor)][1].remove()
                hook = tensor.register_hook(partial(self._gradient, user, "the gradient of an intermediate result"))
                self._hooks[id(tensor)] = tensor, hook

    def _gradient(self, name: str, what: str, gradient: Tensor) -> None:
        self._note(name, "backward", what, gradient)

    def _note(self, name: str, direction: str, what: str, tensor: Tensor, module: nn.Module | None = None) -> None:
        if self.first is None and not _finite(tensor):
            bad = int((~tensor.isfinite()).sum())
            note = "" if module is None else _broken(module)
            self.first = Finding(name, direction, what, tuple(tensor.shape), bad, tensor.numel(), note)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _broken(module: nn.Module) -> str:
    """A note on the parameters and buffers of the module that are not finite."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    bad = [name for name, value in own if value is not None and not _finite(value)]
    return f"; its {', '.join(bad)} is not finite either" if bad else ""


def _tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the inputs or outputs of a module; those of a batch with their names."""
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, Batch):
        for name, one in vars(value).items():
            if isinstance(one, Tensor):
                yield f"the batch's {name}", one
    elif isinstance(value, Separation):
        for one in value.heads.values():
            yield "", one
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def nan_operator(compute: Callable[[], object]) -> str | None:
    """The operator whose gradient has the first NaN in a computation with a backward pass, and where it was called.

    torch's anomaly detection finds NaN only, not infinity; None if it finds nothing.
    """
    with warnings.catch_warnings(record=True) as caught, torch.autograd.detect_anomaly():
        warnings.simplefilter("always")
        try:
            compute()
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)' returned nan", str(error))
            if found is None:
                raise
            calls = [call for warning in caught for call in _own_calls(str(warning.message))]
            return f"{found[1]}{f', called at {calls[-1]}' if calls else ''}"
    return None


def _own_calls(trace: str) -> list[str]:
    """The lines of a traceback that lie outside of torch, innermost last."""
    torch_folder = str(Path(torch.__file__).parent)
    calls = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return [f"{Path(file).name}:{line}" for file, line in calls if not file.startswith(torch_folder)]
