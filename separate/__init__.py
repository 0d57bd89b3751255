"""Train, score and use neural audio source separators.

separator = separate.load("runs/2026-11-22/10-15-03")
stems = separator(waveform, sample_rate)  # {name: waveform}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from separate.checkpoint import load
    from separate.separator import Separator

__version__ = "0.1.0"
__all__ = ["Separator", "__version__", "load"]


def __getattr__(name: str) -> Any:  # imports torch only when it is needed
    if name == "Separator":
        from separate.separator import Separator

        return Separator
    if name == "load":
        from separate.checkpoint import load

        return load
    raise AttributeError(f"module 'separate' has no attribute {name!r}")
