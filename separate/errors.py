"""Errors that the user can mend.  Each message is one sentence: what, where, why it matters, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WORKER_ENDED = "the system ended a worker process, most likely because memory ran out"
INTERRUPTED = 130  # exit code after Ctrl-C
REQUEUE = 75  # exit code of a stopped run, for a scheduler to start it again: EX_TEMPFAIL of sysexits.h
MISFIT = "the checkpoint's configuration and weights do not fit each other"


MINUTES_TO_ANSWER = 30  # that a process of a training waits for the others
RANK_LOST = (
    f"another process of this training ended, or did not answer for {MINUTES_TO_ANSWER} minutes; go on from the last "
    f"checkpoint with resume=true, or let torchrun --max-restarts start all of them again with resume=auto"
)


class SeparateError(Exception):
    """An error that the user can mend; the programs print the message and exit with 1."""

    exit_code = 1


class RankLost(SeparateError):
    """Another process of a training on several ended or does not answer."""


class UsageError(SeparateError):
    """An invalid command or configuration; the programs exit with 2."""

    exit_code = 2


class DataError(SeparateError):
    """Files that are missing, unreadable or do not fit their layout; the message lists all of them."""

    @classmethod
    def of_files(cls, what: str, problems: Iterable[str], way_out: str) -> DataError:
        """what: the headline; problems: `path: problem` for each file, of which the first 50 are shown."""
        lines = sorted(problems)
        shown = [f"  {line}" for line in lines[:50]]
        if len(lines) > 50:
            shown.append(f"  … and {len(lines) - 50} more")
        return cls("\n".join([f"{what}:", *shown, way_out]))


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean …?` for a misspelt word, or the list of choices if none is similar."""
    names = sorted(set(choices))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(names) or 'nothing'}"
