"""The command-line programs, with their common start and error messages: one sentence without a traceback."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.cli.crash_report import DEBUG, to_user_error
from separate.cli.streams import prepare_streams
from separate.errors import INTERRUPTED, REQUEUE
from separate.files import FULL
from separate.process import tune

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
started: list[str] = []  # programs that have composed their configuration and run a job


@contextmanager
def reporting_errors(program: str, folder: Path | None = None) -> Iterator[None]:
    """Print an error as one sentence and exit: with 1, for wrong usage with 2, for a fault of the program with 70.

    folder: of the run, for the traceback of a fault.
    """
    prepare_streams()
    try:
        yield
    except KeyboardInterrupt as error:
        _fail(program, "interrupted", INTERRUPTED, error)
    except BrokenPipeError:  # the reader, e.g. head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        sentence = to_user_error(program, error, folder)
        _fail(program, str(sentence), sentence.exit_code, error)


def _fail(program: str, message: str, code: int, error: BaseException) -> None:
    if os.environ.get(DEBUG):
        raise error
    if speaks(message):
        print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(code)


def speaks(message: str) -> bool:
    """Whether this process prints an error; of several that train together, one prints it."""
    if "separate.training.distributed" not in sys.modules:
        return True
    from separate.training.distributed import current

    return current().speaks(message)


def run_hydra(program: str, task: Callable[[DictConfig], Any], primary: str) -> None:
    """Compose the configuration with Hydra and run a task with it, or print the help.

    primary: train, eval or dataset, the configuration that the others are composed into.
    """
    tune()
    with reporting_errors(program):
        if sys.argv[1:] in (["--help"], ["-h"]):
            from separate.cli.help import help_text

            print(help_text(primary), flush=True)
        else:
            _compose_and_run(program, task, primary)


def _compose_and_run(program: str, task: Callable[[DictConfig], Any], primary: str) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    started.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises the exception instead of printing it
    logging.raiseExceptions = False  # report a full disk once, not at every line of the log
    threading.excepthook = _ignore_full_disk
    main = hydra.main(version_base="1.3", config_path="pkg://separate.conf", config_name=primary)(task)
    try:
        with _with_comments(primary) if {"--cfg", "-c"} & set(sys.argv) else nullcontext():
            main()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if started and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        from separate.cli.hydra_errors import explain

        _fail(program, explain(error), 2, error)


@contextmanager
def _with_comments(primary: str) -> Iterator[None]:
    """Add the comments in `conf/` to a configuration that Hydra prints."""
    from separate.cli.config_comments import annotate

    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    print(annotate(printed.getvalue(), primary))


def _ignore_full_disk(failed: threading.ExceptHookArgs) -> None:
    """Ignore a full disk in TensorBoard's thread: the main thread raises it again and reports it."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL):
        threading.__excepthook__(failed)


def in_job(program: str, job: Callable[[], Any], folder: Path | None = None) -> Any:
    """Run a job of a Hydra program.  If a job of a sweep fails, log its error; Hydra runs the others.

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
            sentence = to_user_error(program, error, folder)
            if sentence.exit_code in (INTERRUPTED, REQUEUE):  # ends the whole sweep
                _fail(program, str(sentence), sentence.exit_code, error)
            log.error("job %s failed: %s", HydraConfig.get().job.num, sentence)
            if sentence is error:
                raise
            raise sentence from error
    with reporting_errors(program, folder):
        return job()
