"""The programs.  Each reads as a table of contents; what they share is how they fail: one sentence, no traceback."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from separate.cli.faults import DEBUG, told
from separate.cli.streams import prepare_streams
from separate.files import FULL
from separate.process import tune

log = logging.getLogger(__name__)
started: list[str] = []  # programs whose job has begun, and so whose configuration could be composed
INTERRUPTED = 130  # exit code after Ctrl-C


@contextmanager
def one_sentence(program: str, folder: Path | None = None) -> Iterator[None]:
    """Print an error as one sentence and exit with 1, for wrong usage with 2, for a fault of the program with 70.

    folder: of the run, for the traceback of a fault.
    """
    prepare_streams()
    try:
        yield
    except KeyboardInterrupt as error:
        _fail(program, "interrupted", INTERRUPTED, error)
    except BrokenPipeError:  # the reader, `head` say, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        sentence = told(program, error, folder)
        _fail(program, str(sentence), sentence.exit_code, error)


def _fail(program: str, message: str, code: int, error: BaseException) -> None:
    if os.environ.get(DEBUG):
        raise error
    print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(code)


def run_hydra(program: str, main: Callable[[], Any], primary: str) -> None:
    """Run a `hydra.main` function; what Hydra refuses is said in one sentence too.  primary: its configuration."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    started.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands the exception on instead of printing it
    logging.raiseExceptions = False  # a full disk is told once, not at every line of the log
    threading.excepthook = _quiet_when_full
    tune()
    with one_sentence(program):
        try:
            with _commented(primary) if {"--cfg", "-c"} & set(sys.argv) else nullcontext():
                main()
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            composing = isinstance(error, (HydraException, OmegaConfBaseException)) or not started
            if not composing:
                raise
            from separate.cli.refusals import explain

            _fail(program, explain(error), 2, error)


@contextmanager
def _commented(primary: str) -> Iterator[None]:
    """Add the comments of its files to a configuration that Hydra prints."""
    from separate.cli.comments import annotate

    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    print(annotate(printed.getvalue(), primary))


def _quiet_when_full(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread raises a full disk again in the main one, where it is told."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL):
        threading.__excepthook__(failed)


def in_job(program: str, job: Callable[[], Any], folder: Path | None = None) -> Any:
    """Run the task of a Hydra program.  A failing job of a sweep lets the others go on, and Hydra reports it.

    folder: of the run, for the traceback of a fault.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    started.append(program)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        try:
            return job()
        except BrokenPipeError:
            raise
        except Exception as error:
            sentence = told(program, error, folder)
            if sentence.exit_code == INTERRUPTED:  # the whole sweep
                _fail(program, str(sentence), INTERRUPTED, error)
            log.error("job %s failed: %s", HydraConfig.get().job.num, sentence)
            if sentence is error:
                raise
            raise sentence from error
    with one_sentence(program, folder):
        return job()
