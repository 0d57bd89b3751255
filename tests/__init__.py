"""Check the shapes in the signatures of `separate` in all tests: jaxtyping's import hook with beartype.

This package is imported before `separate`, because the hook checks only modules that are imported after it.  Programs
that tests start as processes of their own run unchecked, as in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

SIGNALS = [
    "separate.clustering", "separate.data.batch", "separate.data.mixing", "separate.evaluation.sdr",
    "separate.evaluation.scores", "separate.levels", "separate.losses", "separate.models", "separate.overlap",
    "separate.resampling", "separate.separator", "separate.stft", "separate.targets",
]  # fmt: skip


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype for parameters and results that have a shape; other types are left to mypy."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    return beartype(function) if function.__annotations__ else function


def has_shape(hint: Any) -> bool:
    inner = get_args(hint)
    return any(map(has_shape, inner)) if inner else isinstance(hint, type) and issubclass(hint, AbstractArray)


install_import_hook(SIGNALS, "tests.check_shapes")
