"""Prepare the standard streams for any file name in any locale, and for closed descriptors."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Open closed streams on the null device, and escape characters that their encoding lacks.

    Otherwise the next file to be opened gets the closed descriptor, and printed text ends up in that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                try:
                    os.fstat(descriptor)
                except OSError:
                    os.dup2(null, descriptor)
            setattr(sys, name, os.fdopen(os.dup(null), "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
