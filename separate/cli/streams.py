"""Standard streams that a program can write any name to, whatever the locale and whichever of them are closed."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Open closed streams on the null device; escape what their encoding lacks, as names that are no valid UTF-8.

    A closed descriptor would be given to the next file that is opened, and what is printed would land in it.
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
